"""Commits in threads: bounded and drained; results and errors arrive in the caller's thread."""

import threading
import time
from collections.abc import Sequence

import pytest

from pipeline.corpus.plan import Unit
from pipeline.labelling.commit import Commits
from pipeline.labelling.workers.worker import PartResult
from scorers.errors import StoppedError
from tests.pipeline.simulation import part_of, units


class Slow:
    """Commits of 20 ms that count themselves."""

    def __init__(self, fails: int | None = None) -> None:
        self.fails = fails
        self.began: list[int] = []
        self.committed: list[int] = []
        self.threads: set[int] = set()
        self.most = self._now = 0
        self._lock = threading.Lock()

    def commit(self, unit: Unit, parts: Sequence[PartResult]) -> int:
        with self._lock:
            self.began.append(unit.index)
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.02)
        with self._lock:
            self._now -= 1
        if unit.index == self.fails:
            raise StoppedError("a newer driver")
        return unit.index

    def done(self, unit: Unit, parts: Sequence[PartResult], record: int) -> None:
        assert unit.index == record
        self.threads.add(threading.get_ident())
        self.committed.append(record)


def test_commits_overlap_up_to_the_bound_and_report_once_in_the_callers_thread() -> None:
    slow = Slow()
    began = time.monotonic()
    with Commits(slow.commit, slow.done, threads=8) as commits:
        for unit in units(80):
            commits(unit, [part_of(unit, "cpu")])
        commits.drain()
    assert sorted(slow.committed) == list(range(80))
    assert slow.threads == {threading.get_ident()}
    assert 2 <= slow.most <= 8
    assert time.monotonic() - began < 80 * 0.02


def test_a_caller_that_is_faster_than_the_storage_waits() -> None:
    slow = Slow()
    with Commits(slow.commit, slow.done, threads=2) as commits:
        for unit in units(40):
            commits(unit, [])
            assert unit.index - len(slow.committed) < 2 * 5
        commits.drain()


def test_an_exception_of_a_commit_is_raised_and_cancels_queued_commits() -> None:
    slow = Slow(fails=5)
    with pytest.raises(StoppedError), Commits(slow.commit, slow.done, threads=2) as commits:
        for unit in units(40):
            commits(unit, [])
        commits.drain()
    assert len(slow.began) < 20
    assert 5 not in slow.committed


def test_leaving_the_context_waits_for_running_commits() -> None:
    slow = Slow()
    with pytest.raises(KeyboardInterrupt), Commits(slow.commit, slow.done, threads=2) as commits:
        commits(Unit(0, ()), [])
        raise KeyboardInterrupt
    assert slow.began == [0]
    assert slow._now == 0
