"""The seconds of a step by phase."""

import pytest
import torch

from training.engine import timing
from training.engine.timing import COMMUNICATION, Stopwatch


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    return passes


def test_communication_is_excluded_from_the_surrounding_lap(clock):
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        watch.begin()
        clock(1)
        watch.lap("forward")
        clock(2)
        with watch.communicating():
            clock(10)
            with watch.communicating():
                clock(20)
        clock(4)
        watch.lap("backward")
        with pytest.raises(RuntimeError), watch.communicating():
            clock(30)
            raise RuntimeError
        clock(8)
        watch.lap("optimizer")
        clock(100)
        found = watch.read()
        assert list(found) == ["forward", "backward", "optimizer", COMMUNICATION]
        assert found == {"forward": 1, "backward": 6, "optimizer": 8, COMMUNICATION: 60}
