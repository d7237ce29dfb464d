"""Fixtures that several test modules of the pipeline share."""

from collections.abc import Iterator

import pytest

from pipeline.corpus import remote
from tests.pipeline.object_store import object_store


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which clients find a real S3 server, also set in this process."""
    with object_store(tmp_path_factory.mktemp("s3")) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        # Another module of this process may have had a server of its own.
        remote._filesystem.cache_clear()
        yield environment
