"""Drivers that die at a failpoint: the same command finishes what they began.

These jobs run without Ray, in one process that is driver and worker, so that failpoints are passed in order.
"""

import os
import re
import signal
from pathlib import Path

import pytest

import pipeline
from pipeline.checking.verify import verify
from pipeline.dataset import open_dataset
from tests.pipeline.committed import bytes_below
from tests.pipeline.faults.job import COUNT, DIED, DONE, INCOMPLETE, STOPPED, TEXTS, Job, check, copy
from tests.pipeline.label_job import stopped, wait_for

NAMES = sorted(
    {
        name
        for path in Path(pipeline.__file__).parent.rglob("*.py")
        for name in re.findall(r'failpoint\("([a-z-]+)"\)', path.read_text())
    }
)
RETAG_ONLY = ["generation-deleted"]
# Needs a thousand units; see `test_full_folders`.
FULL_FOLDERS_ONLY = ["segment-written"]
# Only in `phf repair` and `phf purge`; `test_repair` and `test_purge` interrupt each of their steps.
REPAIR_ONLY = ["record-replaced"]
PURGE_ONLY = ["tombstones-written", "purge-begun"]
LABELLING = [name for name in NAMES if name not in RETAG_ONLY + FULL_FOLDERS_ONLY + REPAIR_ONLY + PURGE_ONLY]
IN_ORDER = [
    *("staged-written", "staged-synced", "record-created", "part-moved"),
    *("seal-staged", "generation-created", "seal-moved", "card-written", "manifest-written"),
]
SEALING = [f"staged-written@{COUNT + 1}", f"staged-synced@{COUNT + 4}"]
RETAGGING = [name for name in NAMES if name.startswith(("staged-", "seal-", "generation-", "card-", "manifest-"))]


def rule(place: str, action: str) -> str:
    """A failpoint rule for a name, or for a name with the number of the pass."""
    name, _, nth = place.partition("@")
    return f"{name}={action}@{nth or 1}"


def test_the_failpoints_in_the_code_are_those_tested() -> None:
    assert {"staged-written", "record-created", "part-moved", "generation-created", "manifest-written"} <= set(NAMES)


@pytest.mark.parametrize("place", LABELLING + SEALING)
def test_a_driver_that_dies_again_and_again_at_one_point_loses_nothing(
    place: str, reference: Job, tmp_path: Path
) -> None:
    job = Job(tmp_path)
    first = job.label(failpoints=rule(place, "kill"))
    assert first.code == DIED, f"{place} is passed by no run: {first.printed}"
    for _ in range(2):
        again = job.label(failpoints=rule(place, "kill"))
        assert again.code in (DIED, DONE), again.printed
    assert job.label().code == DONE
    check(job, reference)


@pytest.mark.slow
def test_a_driver_that_dies_at_every_point_one_after_another_loses_nothing(reference: Job, tmp_path: Path) -> None:
    job = Job(tmp_path)
    codes = [job.label(failpoints=rule(name, "kill")).code for name in sorted(LABELLING, key=IN_ORDER.index)]
    assert set(codes) == {DIED}
    assert job.label().code == DONE
    # A run of a finished job changes nothing, not even files staged by a dead run; `phf gc` removes those.
    check(job, reference, orphans=True)


def test_a_disk_that_fails_at_any_point_ends_the_driver_with_4_and_the_same_command_resumes(
    reference: Job, tmp_path: Path
) -> None:
    job = Job(tmp_path)
    for name in LABELLING:
        ended = job.label(failpoints=rule(name, "raise"))
        assert ended.code in (INCOMPLETE, DONE), ended.printed
        assert ended.code == DONE or "same command" in " ".join(ended.printed.split())
        assert "Traceback" not in ended.printed
    assert job.label().code == DONE
    check(job, reference)


@pytest.mark.parametrize("place", LABELLING + SEALING)
def test_a_driver_that_wakes_up_after_a_newer_one_is_done_does_no_harm(
    place: str, reference: Job, tmp_path: Path
) -> None:
    job = Job(tmp_path)
    older = job.fork(failpoints=rule(place, "stop"), log="older.log")
    wait_for(lambda: stopped(older.pid) or not older.process.is_alive())
    newer = job.label()
    assert newer.code == DONE, newer.printed
    os.kill(older.pid, signal.SIGCONT)
    ended = older.wait()
    # A driver that had committed the generation finds everything else done.
    done = [DONE] if place.startswith(("generation-", "manifest-")) else []
    assert ended.code in [STOPPED, *done], ended.printed
    # Files that it has staged since are orphans.
    check(job, reference, orphans=True)


@pytest.mark.parametrize("name", RETAGGING)
def test_a_retag_that_dies_leaves_a_whole_dataset_and_is_finished_by_the_same_command(
    name: str, retagged: Job, sealed: Job
) -> None:
    for _ in range(3):
        ended = sealed.retag("p90", failpoints=rule(name, "kill"))
        assert ended.code in (DIED, DONE), ended.printed
        # Wherever it died, readers find one whole generation.
        assert sum(batch.num_rows for batch in open_dataset(sealed.uri).read_batches()) == len(TEXTS)
    assert sealed.retag("p90").code == DONE
    check(sealed, retagged)


def test_a_purge_that_dies_at_every_point_is_finished_by_the_same_command(sealed: Job, tmp_path: Path) -> None:
    # Two records in different units: one unit is finished by recovery, and the other one rewritten.
    positions = [row.as_py() for batch in open_dataset(sealed.uri).read_batches(["position"]) for row in batch[0]]
    gone = (positions[0], positions[-1])
    undisturbed = copy(sealed, tmp_path / "undisturbed")
    assert undisturbed.purge(*gone).code == DONE
    points = [*PURGE_ONLY, "staged-written", *REPAIR_ONLY, *("part-moved", "seal-staged", "generation-created")]
    points += ["seal-moved", "card-written", "manifest-written", "generation-deleted"]
    for name in points:
        ended = sealed.purge(*gone, failpoints=rule(name, "kill"))
        assert ended.code == DIED, f"{name}: {ended.printed}"
        rows = sum(batch.num_rows for batch in open_dataset(sealed.uri).read_batches())
        assert rows == len(TEXTS) - 2 * (name in ("manifest-written", "generation-deleted"))
    assert sealed.label().code == INCOMPLETE, "another command waits for the purge"
    assert sealed.purge(*gone).code == DONE
    assert bytes_below(sealed.output, "data") == bytes_below(undisturbed.output, "data")
    assert bytes_below(sealed.output, "job/purged") == bytes_below(undisturbed.output, "job/purged")
    assert verify(sealed.uri).problems == []
    assert sealed.label().code == DONE
