"""What `phf jobs` makes of Slurm's answers, in the states that `test_slurm.py` does not reach."""

from pathlib import Path

import pytest

from infra.slurm.client import Machines, parse_machines
from infra.slurm.states import read_status
from infra.submission.job import Job, Kind
from infra.submission.store import JobFiles

JOB = Job(id="train-00000000", kind=Kind.TRAIN, words=("train",), folder="/", output="/o", place="slurm")
FORGOTTEN = "slurm_load_jobs error: Invalid job id specified"


@pytest.mark.parametrize(
    ("squeue", "sacct", "events", "state", "reason"),
    [
        ("7|N/A|TIMEOUT|TimeLimit", "", ["started"], "failed", "--stop-before"),
        ("7|N/A|NODE_FAIL|NodeDown", "", ["started"], "lost", "its node failed"),
        ("7|N/A|OUT_OF_MEMORY|OutOfMemory", "", ["started"], "failed", "--memory"),
        ("7|N/A|PENDING|Priority", "", [], "queued", "Priority"),
        ("7|N/A|PENDING|BeginTime", "", ["started", "ended 75"], "requeued", "BeginTime"),
        ("7|N/A|FAILED|NonZeroExitCode", "", ["started", "ended 4"], "failed", "incomplete"),
        ("7|N/A|FAILED|NonZeroExitCode", "", [], "failed", "did not start"),
        ("", "7|CANCELLED by 0|0:15", ["started"], "cancelled", ""),
        ("", "7|COMPLETED|0:0", ["started", "ended 0"], "finished", ""),
        ("", "", ["started", "ended 0"], "finished", ""),
        ("", "", ["started", "ended 2"], "failed", "refused"),
        ("", "", ["started"], "lost", "no longer knows it"),
    ],
)
def test_the_state_of_a_job(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    squeue: str,
    sacct: str,
    events: list[str],
    state: str,
    reason: str,
) -> None:
    refusal = f'echo "{FORGOTTEN}" >&2; exit 1'
    for name, answer in {"squeue": squeue, "sacct": sacct}.items():
        command = tmp_path / name
        # A Slurm that keeps no accounts has no answer of sacct.
        command.write_text(f"#!/bin/sh\n{f'echo {answer!r}' if answer else refusal}\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    files = JobFiles(tmp_path, JOB.id)
    for event in ["submitted slurm", *events]:
        files.add_event(*event.split(" "))
    status = read_status(JOB.model_copy(update={"handle": {"job": "7"}}), files)
    assert (status.state, reason in status.reason) == (state, True), status


def test_machines_are_read_from_what_sinfo_prints():
    text = "main*|64|1024\n  gpu|128|3  \nodd|64+|2\n\nsinfo: warning: something\n"
    assert parse_machines(text) == [Machines("main", True, 64, 1024), Machines("gpu", False, 128, 3)]
