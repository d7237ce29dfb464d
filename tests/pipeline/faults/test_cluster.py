"""Labelling on a real cluster of several nodes whose workers, nodes and head die."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.storage.failpoints import VARIABLE
from tests.pipeline.faults.cluster import Cluster, cluster
from tests.pipeline.faults.job import DONE, INCOMPLETE, STOPPED, Driver, Job, check
from tests.pipeline.faults.test_disk_fails import fill, mounted
from tests.pipeline.label_job import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PATIENT = ("--set", "execution.attempts=10")
# The driver gives up after two thirds of this, and must end in the rest, even on a busy machine.
RAY_GIVES_UP_AFTER_S = 24
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Job]]:
    """A head with two nodes, and a job whose probe their workers can load."""
    job = Job(tmp_path_factory.mktemp("cluster"))
    with cluster(job.env) as made:
        made.add()
        made.add()
        yield made, job


@pytest.fixture
def job(nodes: tuple[Cluster, Job], tmp_path: Path) -> Job:
    """The job with a new output, and with the log and corpus that the workers know."""
    _, made = nodes
    made.output = tmp_path / "labelled"
    made.uri = str(made.output)
    made.log.unlink(missing_ok=True)
    made.log.with_suffix(".hold").unlink(missing_ok=True)
    made.env["RAY_gcs_rpc_server_reconnect_timeout_s"] = str(RAY_GIVES_UP_AFTER_S)
    return made


def held(job: Job, driver: Driver, made: Cluster, more: int, workers: int = 2) -> None:
    """Wait until `more` texts are scored and `workers` workers are held, each with a unit."""
    # Until this driver's workers have scored something, the workers found may be those of the previous driver.
    wait_for(lambda: job.scored().total() > 0 or _over(driver), PATIENCE_S)
    wait_for(lambda: len(made.workers()) == workers or _over(driver), PATIENCE_S)
    job.hold(job.scored().total() + more)
    wait_for(lambda: job.scored().total() >= int(job.log.with_suffix(".hold").read_text()) or _over(driver), PATIENCE_S)
    assert not _over(driver), driver.printed


def lost(driver: Driver) -> int:
    """The number of workers that the driver has lost so far."""
    return driver.printed.count("worker of the group cpu was lost")


def _over(driver: Driver) -> bool:
    return driver.process.poll() is not None


def test_workers_and_nodes_that_die_one_after_another_lose_nothing(
    nodes: tuple[Cluster, Job], job: Job, reference: Job
) -> None:
    made, _ = nodes
    job.hold(7)
    with job.driver("--address", made.address, *PATIENT) as driver:
        held(job, driver, made, 0)
        # An actor in the middle of a batch.
        os.kill(made.workers()[0], signal.SIGKILL)
        held(job, driver, made, 7)
        # Kill a whole node through its raylet; another one joins.
        # (The replacement of the dead worker may be on either node.)
        first, second = sorted(made.nodes, key=lambda node: not made.workers(node))
        assert made.workers(first)
        made.kill_raylet(first)
        wait_for(lambda: lost(driver) >= 2 or _over(driver), PATIENCE_S)
        made.add()
        held(job, driver, made, 7)
        # Remove a node in an orderly way.
        made.remove(second)
        made.add()
        held(job, driver, made, 7)
        job.release()
        ended = driver.wait()
    assert ended.code == DONE, ended.printed
    assert lost(driver) >= 3
    check(job, reference)


def test_a_driver_that_sleeps_while_a_newer_one_takes_over_does_no_harm(
    nodes: tuple[Cluster, Job], job: Job, reference: Job
) -> None:
    made, _ = nodes
    job.hold(7)
    with job.driver("--address", made.address) as older:
        held(job, older, made, 0)
        os.kill(older.process.pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(older.process.pid, signal.SIGCONT)
        held(job, older, made, 14)
        wait_for(lambda: len(job.committed()) >= 2)
        os.kill(older.process.pid, signal.SIGSTOP)
        job.release()
        newer = job.label()
        assert newer.code == DONE, newer.printed
        os.kill(older.process.pid, signal.SIGCONT)
        ended = older.wait()
    assert ended.code == STOPPED, ended.printed
    assert "newer" in ended.printed
    check(job, reference, orphans=True)


def test_a_disk_that_is_full_for_the_workers_ends_the_driver_with_4(
    nodes: tuple[Cluster, Job], job: Job, reference: Job, tmp_path: Path
) -> None:
    made, _ = nodes
    place = tmp_path / "small"
    with mounted(place, "-t", "tmpfs", "-o", "size=2m", "tmpfs"):
        job.output = place / "labelled"
        job.uri = str(job.output)
        job.hold(14)
        with job.driver("--address", made.address) as driver:
            held(job, driver, made, 0)
            ballast = fill(place, 0)
            job.release()
            ended = driver.wait()
        assert ended.code == INCOMPLETE, ended.printed
        assert "No space left on device" in ended.printed
        assert "Traceback" not in ended.printed
        ballast.unlink()
        again = job.label()
        assert again.code == DONE, again.printed
        check(job, reference, orphans=True)


def test_workers_that_die_between_write_and_sync_leave_no_partial_part(
    nodes: tuple[Cluster, Job], job: Job, reference: Job
) -> None:
    made, _ = nodes
    for node in made.nodes:
        made.remove(node)
    # Workers inherit the failpoint from the raylet of their node; the driver has none.
    for place in ("staged-written", "staged-synced"):
        made.add({VARIABLE: f"{place}=kill@4;{place}=raise@2"})
    with job.driver("--address", made.address, *PATIENT) as driver:
        ended = driver.wait()
    assert ended.code == DONE, ended.printed
    assert "worker of the group cpu was lost" in ended.printed
    assert "Input/output error" in ended.printed
    check(job, reference)


def test_a_lost_head_ends_the_driver_with_4_before_ray_kills_it(
    nodes: tuple[Cluster, Job], job: Job, reference: Job
) -> None:
    made, _ = nodes
    job.hold(14)
    with job.driver("--address", made.address) as driver:
        held(job, driver, made, 0)
        made.kill_head()
        begun = time.monotonic()
        ended = driver.wait(60)
    assert ended.code == INCOMPLETE, ended.printed
    assert "The head of the Ray cluster" in ended.printed
    assert "same command continues" in ended.printed
    assert time.monotonic() - begun < 2 * RAY_GIVES_UP_AFTER_S
    job.release()
    made.close()
    again = job.label()
    assert again.code == DONE, again.printed
    check(job, reference)
