"""Scorers that raise on one record, and on every record."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.storage.open import open_storage
from tests.pipeline import probe
from tests.pipeline.faults.job import DONE, INCOMPLETE, TEXTS, Job, check, rows

OVER_LIMIT = 3


@pytest.mark.slow
def test_only_a_record_that_a_scorer_raises_on_is_quarantined(reference: Job, tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.write([*TEXTS[:30], f"{TEXTS[30]} {probe.RAISE}", *TEXTS[31:]])
    with job.driver() as driver:
        assert driver.wait().code == OVER_LIMIT, driver.printed
    quarantined = [
        row for path in (job.output / "ledger/0001").glob("quarantine-*") for row in pq.read_table(path).to_pylist()
    ]
    assert [row["reason"] for row in quarantined] == ["scorer-error"]
    kept = {(text, score) for _, _, text, score in rows(open_storage(job.uri))}
    gone = {text for _, _, text, _ in rows(open_storage(reference.uri))} - {text for text, _ in kept}
    assert kept <= {(text, score) for _, _, text, score in rows(open_storage(reference.uri))}
    assert gone
    assert all(text.strip() in TEXTS[30] for text in gone)


@pytest.mark.slow
def test_a_scorer_that_raises_on_everything_quarantines_nothing_and_resumes_once_fixed(
    reference: Job, tmp_path: Path
) -> None:
    job = Job(tmp_path)
    job.env[probe.RAISE_ALWAYS] = "1"
    with job.driver() as driver:
        ended = driver.wait()
    assert ended.code == INCOMPLETE, ended.printed
    assert "fails on any document" in ended.printed
    assert job.committed() == set()
    assert not (job.output / "manifest.json").exists()
    del job.env[probe.RAISE_ALWAYS]
    assert job.label().code == DONE
    check(job, reference)
