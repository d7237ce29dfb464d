"""Real `phf label` processes with a local Ray whose processes are killed, stopped and interrupted."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline.faults.job import DIED, DONE, INCOMPLETE, STOPPED, Driver, Job, check, command_of
from tests.pipeline.faults.test_driver_dies import LABELLING
from tests.pipeline.label_job import alive, descendants, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROUNDS = int(os.environ.get("PHF_CHAOS_ROUNDS", "4"))
SEED = int(os.environ.get("PHF_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)
PATIENT = ("--set", "execution.attempts=20")


def test_a_signal_at_any_moment_stops_with_75_and_the_same_command_resumes(reference: Job, tmp_path: Path) -> None:
    # Without Ray, to have time for many moments: reading, scoring, sealing.
    job = Job(tmp_path)
    chance = random.Random(SEED)
    stopped = 0
    for nth in range(40):
        driver = job.fork()
        wait_for(lambda: not driver.process.is_alive() or "Reading" in driver.printed)  # noqa: B023
        time.sleep(chance.uniform(0, 0.3))
        if driver.process.is_alive():
            os.kill(driver.pid, (signal.SIGTERM, signal.SIGINT)[nth % 2])
        ended = driver.wait()
        assert ended.code in (STOPPED, DONE), f"seed {SEED}, signal {nth}: {ended}"
        stopped += ended.code == STOPPED
        if ended.code == DONE:
            if stopped:
                break
            # It finished before the signal arrived.
            job = Job(tmp_path / f"again-{nth}")
    assert stopped, f"seed {SEED}"
    assert job.label().code == DONE
    check(job, reference, orphans=True)


class Chaos:
    """Disturbs a running driver and the processes that it has started."""

    def __init__(self, driver: Driver, chance: random.Random) -> None:
        self._driver = driver
        self._chance = chance

    def worker_dies(self) -> None:
        """SIGKILL to an actor."""
        self._kill(self._driver.workers())

    def worker_sleeps(self) -> None:
        """Stop an actor for a while (SIGSTOP)."""
        workers = self._driver.workers()
        if workers:
            chosen = self._chance.choice(workers)
            _signal(chosen, signal.SIGSTOP)
            time.sleep(self._chance.uniform(0.2, 1.5))
            _signal(chosen, signal.SIGCONT)

    def driver_sleeps(self) -> None:
        """Stop the driver for a while (SIGSTOP)."""
        _signal(self._driver.process.pid, signal.SIGSTOP)
        time.sleep(self._chance.uniform(0.2, 2.0))
        _signal(self._driver.process.pid, signal.SIGCONT)

    def driver_dies(self) -> None:
        """SIGKILL to the driver."""
        self._driver.process.kill()

    def driver_is_told_to_stop(self) -> None:
        """SIGTERM to the driver."""
        self._driver.process.terminate()

    def node_dies(self) -> None:
        """SIGKILL to the raylet, on which the driver itself depends."""
        self._kill([pid for pid in self._below() if "raylet/raylet" in command_of(pid)])

    def head_dies(self) -> None:
        """SIGKILL to the cluster's control service."""
        self._kill([pid for pid in self._below() if "gcs_server" in command_of(pid)])

    def _below(self) -> list[int]:
        return sorted(alive(descendants(self._driver.process.pid)))

    def _kill(self, pids: list[int]) -> None:
        if pids:
            _signal(self._chance.choice(pids), signal.SIGKILL)


def _signal(pid: int, which: signal.Signals) -> None:
    if alive({pid}):
        os.kill(pid, which)


HARMLESS = ["worker_dies", "worker_dies", "worker_sleeps", "driver_sleeps"]
FATAL = ["driver_dies", "driver_is_told_to_stop", "node_dies", "head_dies"]


def test_nothing_is_lost_whatever_is_killed_and_when(
    reference: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        sys.stderr.write(f"\nchaos: PHF_CHAOS_SEED={SEED} PHF_CHAOS_ROUNDS={ROUNDS}\n")
    chance = random.Random(SEED)
    story: list[str] = [f"seed {SEED}"]
    for job_number in range(max(1, ROUNDS // 4)):
        job = Job(tmp_path / str(job_number))
        # Ray kills a process a minute after its head has died; here sooner.
        job.env["RAY_gcs_rpc_server_reconnect_timeout_s"] = "9"
        for _ in range(4):
            code = _round(job, chance, story)
            assert code in (DONE, STOPPED, INCOMPLETE, DIED), story
            if code == DONE:
                break
        assert job.label().code == DONE, story
        check(job, reference, orphans=True)


def _round(job: Job, chance: random.Random, story: list[str]) -> int:
    failpoints = f"{chance.choice(LABELLING)}=kill@{chance.randrange(1, 8)}" if chance.random() < 0.3 else ""
    story.append(f"-- {failpoints}")
    job.hold(job.scored().total() + chance.randrange(1, 40))
    with job.driver(*PATIENT, failpoints=failpoints) as driver:
        wait_for(lambda: "Labelling" in driver.printed or driver.process.poll() is not None, 120)
        time.sleep(chance.uniform(0, 4))
        chaos = Chaos(driver, chance)
        for name in [*chance.sample(HARMLESS, 2), chance.choice([*FATAL, *HARMLESS])]:
            if driver.process.poll() is None:
                story.append(name)
                getattr(chaos, name)()
                time.sleep(chance.uniform(0, 1))
        job.release()
        ended = driver.wait(150)
    story.append(f"{ended.code}: {ended.printed[-300:]}")
    return ended.code
