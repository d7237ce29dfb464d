"""What all tests share."""

import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def folder_of_ray() -> Iterator[None]:
    """Clusters that tests start keep their files apart from those of this machine.

    `/tmp/ray` may belong to another user, and the address of the newest cluster there is the one that others join.
    """
    # Paths of sockets below it may have 107 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)
        yield
