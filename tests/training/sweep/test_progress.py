"""The progress of a sweep."""

import json
from pathlib import Path

import pytest

from training.sweep.jobs import Job, Stage
from training.sweep.progress import Logged, SweepProgress, last_logged


def test_the_last_logged_step_gives_the_time_left(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert last_logged(metrics, 100, 50) is None
    lines = [{"step": step, "loss": 4.0 - step / 10, "tokens_per_second": 25.0} for step in (10, 20)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    # A measurement is no step, and the line that is being written is not read.
    metrics.write_text(text + json.dumps({"step": 20, "validation": {"loss": 1.0}}) + "\n" + '{"step": 30, "lo')
    assert last_logged(metrics, 100, 50) == Logged(20, 2.0, 80 * 50 / 25)
    metrics.write_text('{"step": 20, "loss": null, "tokens_per_second": null}\n')
    assert last_logged(metrics, 100, 50) == Logged(20, None, None)
    metrics.write_text('[1]\n{"step": 1e9, "tokens_per_second": 1.0}\nnonsense\n')
    assert last_logged(metrics, 100, 50) is None


def test_without_a_terminal_each_change_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [Job(name, tmp_path / f"{name}.log", [Stage("training", ()), Stage("evaluating", ())]) for name in "ab"]
    with SweepProgress({}) as progress:
        progress.update(jobs)
        jobs[0].state = "running"
        progress.update(jobs)
        progress.update(jobs)
        jobs[0].stage = 1
        progress.update(jobs)
        jobs[0].state, jobs[0].reason = "failed", "status 4\x1b[31m"
        jobs[1].state = "finished"
        progress.update(jobs)
    assert capsys.readouterr().err.splitlines() == [
        "a: training",
        "a: evaluating",
        f"a: failed: status 4\\x1b[31m. Log: {tmp_path / 'a.log'} (2 of 2 runs)",
        "b: was finished before (2 of 2 runs)",
    ]
