"""What the fault tests share: the job that nothing disturbed."""

import pytest

from tests.pipeline.faults.job import COUNT, Job, scored_once


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job that went through, in one process and without Ray."""
    job = Job(tmp_path_factory.mktemp("undisturbed"))
    ended = job.label()
    assert ended.code == 0, ended.said
    assert len(job.committed()) == COUNT
    assert scored_once(job)
    return job
