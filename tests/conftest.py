"""Fixtures for all tests."""

import os
import sys
import tempfile
from collections.abc import Iterator

import hypothesis
import pytest

from scorers import registry
from scorers.deadline import DeadlineExceededError

# Tests run in parallel, and threads that wait for each other on shared cores are slower than one. OpenMP reads it once,
# when the first test module imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes depends on the machine and on what else runs on it.
hypothesis.settings.register_profile("phf", deadline=None)
hypothesis.settings.load_profile("phf")


@pytest.fixture(scope="session", autouse=True)
def environment_of_ray() -> Iterator[None]:
    """Keep the files of Ray clusters that tests start apart from those of this machine, and their workers as fast.

    `/tmp/ray` may belong to another user, and Ray joins the newest cluster whose address it finds there.
    """
    # The paths of sockets below it may have at most 107 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)
        # Ray starts its workers with niceness 15: beside other tests on all cores, one takes minutes to start.
        patch.setenv("RAY_worker_niceness", "0")
        yield


@pytest.fixture(scope="session", autouse=True)
def deadlines_in_destructors() -> Iterator[None]:
    """Do not report a deadline that a destructor has swallowed: it is raised again, even while pytest reports it."""
    report = sys.unraisablehook

    def report_others(found: "sys.UnraisableHookArgs") -> None:
        if not issubclass(found.exc_type, DeadlineExceededError):
            report(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "unraisablehook", report_others)
        yield


@pytest.fixture(scope="module", autouse=True)
def scorers_of_this_module() -> Iterator[None]:
    """Forget the scorers of packages that the tests of a module had on their path, once they are off it."""
    yield
    registry._plugins.cache_clear()
