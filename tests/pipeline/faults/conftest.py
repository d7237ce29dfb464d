"""Fixtures of the fault tests: undisturbed jobs."""

from pathlib import Path

import pytest

from tests.pipeline.faults.job import COUNT, DONE, Job, copy, scored_once


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A finished job, labelled in one process without Ray."""
    job = Job(tmp_path_factory.mktemp("undisturbed"))
    ended = job.label()
    assert ended.code == DONE, ended.printed
    assert len(job.committed()) == COUNT
    assert scored_once(job)
    return job


@pytest.fixture
def sealed(reference: Job, tmp_path: Path) -> Job:
    """A copy of the reference job, to be disturbed."""
    return copy(reference, tmp_path / "sealed")


@pytest.fixture(scope="session")
def retagged(reference: Job, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The reference job, tagged again."""
    job = copy(reference, tmp_path_factory.mktemp("retagged") / "job")
    ended = job.retag("p90")
    assert ended.code == DONE, ended.printed
    return job
