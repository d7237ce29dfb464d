"""A driver that dies when a folder of a thousand units is full, before and after its segment is written."""

from pathlib import Path

import pytest

from pipeline.checking.verify import verify
from pipeline.job.unit_store import FOLDER_UNITS, UnitStore
from pipeline.storage.open import open_storage
from tests.pipeline import forked
from tests.pipeline.faults.job import DIED, DONE, Job
from tests.pipeline.label_job import data_hashes

COUNT = FOLDER_UNITS + 3
OPTIONS = ("--unit-size", "8")


class ManyUnits(Job):
    """A corpus of a little more than a thousand records, each a unit of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.write([f"{number}." for number in range(COUNT)])

    def label(self, *options: str, failpoints: str = "", file_size: int = 0) -> forked.Ended:
        arguments = self.command(*OPTIONS, *options, output=self.uri)[3:]
        return self._fork(arguments, failpoints, file_size).wait(300)


@pytest.mark.slow
def test_a_driver_that_dies_around_a_full_folder_loses_nothing(tmp_path: Path) -> None:
    undisturbed = ManyUnits(tmp_path / "undisturbed")
    assert undisturbed.label().code == DONE

    job = ManyUnits(tmp_path / "disturbed")
    store = UnitStore(open_storage(job.uri))
    # The thousandth unit has a record, but its part is still staged.
    assert job.label(failpoints=f"record-created=kill@{FOLDER_UNITS}").code == DIED
    assert store.segments() == set()
    assert int(store.committed(COUNT).sum()) == FOLDER_UNITS
    assert job.label(failpoints="segment-written=kill").code == DIED
    assert store.segments() == {0}
    assert len(list(store.records(FOLDER_UNITS))) == FOLDER_UNITS
    ended = job.label()
    assert ended.code == DONE, ended.printed
    assert f"{FOLDER_UNITS:,} of {COUNT:,} units are already labelled" in ended.printed
    assert data_hashes(job.output) == data_hashes(undisturbed.output)
    assert verify(job.uri).problems == []
    assert set(job.scored().values()) == {1}, "no unit is scored twice"
