"""Runs that are asked to stop at any time during their start end in time, and are resumable.

PHF_CHAOS_ROUNDS=100 tries a hundred starts of two ranks, and thirty of one; PHF_CHAOS_SEED repeats a printed seed.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from scorers.stopping import ONCE_S
from tests.interrupting import catches
from tests.training.jobs import ENVIRONMENT, command, job_config
from training.data.prepare import prepare

ROUNDS = int(os.environ.get("PHF_CHAOS_ROUNDS", "2"))
SEED = int(os.environ.get("PHF_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)
# Seconds in which a start is over on an idle machine, and seconds from a signal to the end.
START_S, END_S = 8.0, 15.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def prepared(tmp_path_factory, code_dataset):
    prepare(job_config(code_dataset, tmp_path_factory.mktemp("prepared") / "run"))


def rounds():
    """The number of ranks, the time and the kind of the signal; the second comes too late to count as the first."""
    chance = random.Random(SEED)
    counts = {(2, 1): ROUNDS, (1, 1): -(-3 * ROUNDS // 10), (2, 2): -(-2 * ROUNDS // 10)}
    for (ranks, signals), count in counts.items():
        for _ in range(count):
            pauses = [chance.uniform(0.0, START_S), *(chance.uniform(1.0, 2.0) * ONCE_S for _ in range(signals - 1))]
            first = chance.choice([signal.SIGTERM, signal.SIGINT])
            yield ranks, list(zip(pauses, [first, signal.SIGINT], strict=False))


@pytest.mark.parametrize(("ranks", "signals"), list(rounds()))
def test_a_start_that_is_asked_to_stop_ends_in_time_and_resumable(tmp_path, code_dataset, ranks, signals):
    what = f"PHF_CHAOS_SEED={SEED} PHF_CHAOS_ROUNDS={ROUNDS}: {ranks} ranks, {signals}"
    arguments = command(code_dataset, tmp_path / "run", training__num_tokens=50_000 * 4 * 32, training__save_every=1000)
    with subprocess.Popen(
        [sys.executable, *arguments, "--ranks", str(ranks)],
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        try:
            # Before that its end is the kernel's, in whatever time this machine needs to start Python.
            while not catches(process.pid, signal.SIGTERM):
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.005)
            for pause, number in signals:
                time.sleep(pause)
                process.send_signal(number)
            began = time.monotonic()
            _, stderr = process.communicate(timeout=60)
            took = time.monotonic() - began
        finally:
            process.kill()
    assert process.returncode == 75, f"{what}\n{stderr}"
    assert took < END_S, f"{took} s: {what}\n{stderr}"
    assert "Traceback" not in stderr, what
    assert "defect" not in stderr, what
    assert stderr.count("Stopped:") <= 2, f"{what}\n{stderr}"
