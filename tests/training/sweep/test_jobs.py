"""Jobs in parallel processes, with small Python programs in place of phf."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from scorers.errors import IncompleteError, UserError
from training.sweep.jobs import Job, Stage, run_jobs

# Ranks start with signals blocked, which `phf` unblocks.
UNBLOCKED = "import os, signal, sys, time; signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM]); "
STOPPABLE = (
    UNBLOCKED + "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); open({started!r}, 'w').close(); time.sleep(60)"
)


class Silent:
    def update(self, jobs: Sequence[Job]) -> None:
        pass


def command(_module: str, *words: str) -> list[str]:
    return [sys.executable, "-S", "-c", *words]


def job(folder: Path, name: str, *programs: str) -> Job:
    return Job(
        name, folder / f"{name}.log", [Stage(f"stage {number}", (each,)) for number, each in enumerate(programs)]
    )


def run(jobs: Sequence[Job], places: int = 1) -> bool:
    return run_jobs(jobs, [{"PLACE": str(place)} for place in range(places)], Silent(), command)


def test_as_many_run_at_once_as_there_are_places(tmp_path: Path) -> None:
    # Each program fails where another one uses its place.
    program = (
        f"import os, time; held = os.path.join({str(tmp_path)!r}, os.environ['PLACE']); os.mkdir(held); "
        "time.sleep(0.3); "
        "print(time.time()); os.rmdir(held)"
    )
    jobs = [job(tmp_path, f"job{number}", program, program) for number in range(4)]
    began = time.monotonic()
    assert not run(jobs, places=2)
    assert [each.state for each in jobs] == ["finished"] * 4
    # Eight programs of 0.3 s in two places.
    assert time.monotonic() - began >= 1.2
    ends = sorted(float(line) for each in jobs for line in each.log.read_text().splitlines() if line[0] != "$")
    assert len(ends) == 8
    assert all(after - before > 0.25 for before, after in zip(ends, ends[2:], strict=False))


def test_one_failure_does_not_stop_the_others_and_its_error_is_shown(tmp_path: Path) -> None:
    jobs = [
        job(tmp_path, "refused", "import sys; print('Error: no such thing'); print('bye'); sys.exit(2)", "print(1)"),
        job(tmp_path, "killed", "import os; os.kill(os.getpid(), 9)"),
        job(tmp_path, "whole", "print('one')", "print('two')"),
    ]
    assert not run(jobs)
    assert [each.state for each in jobs] == ["failed", "failed", "finished"]
    assert jobs[0].reason == "status 2 while stage 0: Error: no such thing"
    assert jobs[1].reason == "killed by SIGKILL while stage 0"
    assert "1" not in jobs[0].log.read_text().splitlines()
    assert [line for line in jobs[2].log.read_text().splitlines() if line[0] != "$"] == ["one", "two"]


def test_what_is_done_is_not_run_again(tmp_path: Path) -> None:
    stages = [Stage("first", ("print('first')",), lambda: True), Stage("second", ("print('second')",))]
    half = Job("half", tmp_path / "half.log", stages)
    whole = Job("whole", tmp_path / "whole.log", [stages[0], stages[0]])
    run([half, whole])
    assert (half.state, whole.state, whole.seconds) == ("finished", "finished", 0)
    assert "first" not in half.log.read_text().replace("$ phf", "").splitlines()
    assert not whole.log.exists()


def test_a_damaged_run_does_not_stop_the_others(tmp_path: Path) -> None:
    def damaged() -> bool:
        raise UserError("run.json is damaged")

    jobs = [Job("bad", tmp_path / "bad.log", [Stage("first", ("",), damaged)]), job(tmp_path, "good", "print(1)")]
    assert not run(jobs)
    assert [(each.state, each.reason) for each in jobs] == [("failed", "run.json is damaged"), ("finished", "")]


def when(condition: Callable[[], bool], *actions: Callable[[], None]) -> threading.Thread:
    def watch() -> None:
        while not condition():
            time.sleep(0.02)
        for action in actions:
            action()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_stops_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    started = [tmp_path / f"started{number}" for number in range(2)]
    jobs = [
        job(tmp_path, "stopped", STOPPABLE.format(started=str(started[0])), "print(1)"),
        # A command that ends well after the signal: its job is not finished, and its next command does not start.
        job(tmp_path, "between", f"{UNBLOCKED}open({str(started[1])!r}, 'w').close(); "
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep(60)", "print(1)"),
        job(tmp_path, "never", "print(1)"),
    ]  # fmt: skip
    watcher = when(lambda: all(each.exists() for each in started), lambda: time.sleep(0.3), stop)
    assert run(jobs, places=2)
    watcher.join()
    assert [each.state for each in jobs] == ["stopped", "stopped", "waiting"]
    assert not jobs[2].log.exists()


def test_a_second_signal_kills(tmp_path: Path) -> None:
    from scorers.stopping import StopRequest

    started = tmp_path / "started"
    deaf = (
        UNBLOCKED + f"signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True); "
        f"open({str(started)!r}, 'w').close(); time.sleep(60)"
    )
    hung = job(tmp_path, "hung", deaf)
    # Ctrl-C: a second SIGTERM counts only some seconds later.
    again = partial(os.kill, os.getpid(), signal.SIGINT)
    watcher = when(started.exists, stop, lambda: time.sleep(1.3), again)
    with pytest.raises(StopRequest):
        run([hung])
    watcher.join()
    pid = int(hung.log.read_text().splitlines()[-1])
    assert not Path(f"/proc/{pid}").exists()


def test_a_log_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "linked.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IncompleteError, match=r"linked\.log cannot be written"):
        run([job(tmp_path, "linked", "print(1)")])
    assert not (tmp_path / "elsewhere").exists()
