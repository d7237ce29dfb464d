import socket
from collections.abc import Iterator

import pytest

from pipeline.labelling.on_ray.head import HeadLostError, HeadWatch


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


class Clock:
    """A clock that only the test moves."""

    now = 0.0

    def __call__(self) -> float:
        """The time in seconds."""
        return self.now


def watch_for(seconds: int, watch: HeadWatch, clock: Clock) -> None:
    for _ in range(seconds):
        clock.now += 1
        watch.check()


def test_a_head_that_stops_answering_is_lost_after_a_while(listener: socket.socket) -> None:
    clock = Clock()
    host, port = listener.getsockname()
    watch = HeadWatch(f"{host}:{port}", clock)
    watch_for(100, watch, clock)
    listener.close()
    watch_for(38, watch, clock)
    with pytest.raises(HeadLostError, match=rf"{host}:{port}.* has not answered for 4\d s"):
        watch_for(5, watch, clock)


def test_a_head_that_never_answered_is_not_lost(listener: socket.socket) -> None:
    clock = Clock()
    host, port = listener.getsockname()
    listener.close()
    watch_for(1000, HeadWatch(f"{host}:{port}", clock), clock)
