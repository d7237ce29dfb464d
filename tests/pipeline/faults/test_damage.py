"""Flipped bits and truncated files: damage is named, and the recommended remedy restores the same bytes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.storage.open import open_storage
from tests.pipeline.faults.job import COUNT, DIED, DONE, INCOMPLETE, Job, check, records

DAMAGED = 1
"""Exit status of `phf verify`."""


def flip(path: Path) -> None:
    """Flip one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def truncate(path: Path) -> None:
    """Cut off the end."""
    path.write_bytes(path.read_bytes()[:-200])


HARMS = pytest.mark.parametrize("harm", [flip, truncate])


@HARMS
def test_a_damaged_part_is_reported_before_it_gets_into_the_dataset(
    harm: Callable[[Path], None], reference: Job, tmp_path: Path
) -> None:
    job = Job(tmp_path)
    assert job.label(failpoints=f"staged-written=kill@{COUNT + 1}").code == DIED
    found = records(open_storage(job.uri))
    part = found[3]["parts"][0]["path"]  # type: ignore[index]
    harm(job.output / part)
    for _ in range(2):
        ended = job.label()
        assert ended.code == INCOMPLETE, ended.printed
        assert part in ended.printed
        assert "is damaged" in ended.printed
        assert not (job.output / "manifest.json").exists()
    # The recommended remedy.
    next((job.output / "units").rglob("00000003.json")).unlink()
    assert job.label().code == DONE
    check(job, reference, orphans=True)
    assert job.scored().most_common(1)[0][1] == 2
    assert sum(count == 2 for count in job.scored().values()) <= 7


@HARMS
def test_a_damaged_shard_is_reported_by_verify_and_rebuilt_from_its_units(
    harm: Callable[[Path], None], reference: Job, sealed: Job
) -> None:
    shard = "data/0001/part-00001.parquet"
    before = sealed.scored()
    harm(sealed.output / shard)
    ended = sealed.verify()
    assert ended.code == DAMAGED, ended.printed
    assert shard in ended.printed
    assert "part-00000" not in ended.printed
    # The recommended remedy.
    for path in [sealed.output / "manifest.json", *(sealed.output / "generations").iterdir()]:
        path.unlink()
    assert sealed.label().code == DONE
    check(sealed, reference)
    assert sealed.scored() == before
    assert sealed.verify().code == DONE
