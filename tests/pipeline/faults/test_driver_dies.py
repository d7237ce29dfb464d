"""SIGKILL to the driver at every named failpoint: whatever it had begun, the same command finishes it.

These jobs run without Ray, in one process that is driver and worker, so that each point is passed in order.
"""

import re
from pathlib import Path

import pytest

import pipeline
from tests.pipeline.faults.job import COUNT, DIED, DONE, Job, check, records
from pipeline.storage import Storage

NAMES = sorted(
    {
        name
        for path in Path(pipeline.__file__).parent.rglob("*.py")
        for name in re.findall(r'failpoint\("([a-z-]+)"\)', path.read_text())
    }
)
RETAG_ONLY = ["generation-deleted"]
LABEL = [name for name in NAMES if name not in RETAG_ONLY]


def test_the_failpoints_are_where_they_are_looked_for() -> None:
    assert {"staged-written", "record-created", "part-moved", "generation-created", "manifest-written"} <= set(NAMES)


@pytest.mark.parametrize("name", LABEL)
def test_a_driver_that_dies_again_and_again_at_one_point_loses_nothing(
    name: str, reference: Job, tmp_path: Path
) -> None:
    job = Job(tmp_path)
    first = job.label(failpoints=f"{name}=kill")
    assert first.code == DIED, f"{name} is passed by no run: {first.said}"
    for _ in range(2):
        again = job.label(failpoints=f"{name}=kill")
        assert again.code in (DIED, DONE), again.said
    assert job.label().code == DONE
    check(job, reference)


def test_a_driver_that_dies_at_every_point_one_after_another_loses_nothing(reference: Job, tmp_path: Path) -> None:
    job = Job(tmp_path)
    for name in [*LABEL, *reversed(LABEL)]:
        assert job.label(failpoints=f"{name}=kill").code in (DIED, DONE)
    assert job.label().code == DONE
    check(job, reference)
    assert all(record["epoch"] for record in records(Storage.open(job.uri)).values())
