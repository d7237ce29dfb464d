"""Fixtures shared by the tests of the pipeline."""

from collections.abc import Iterator

import pytest

from pipeline.corpus import remote
from tests.pipeline.object_store import object_store


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment variables for a real S3 server, also set in this process."""
    with object_store(tmp_path_factory.mktemp("s3")) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        # Another test module of this process may have used another server.
        remote._filesystem.cache_clear()
        yield environment
