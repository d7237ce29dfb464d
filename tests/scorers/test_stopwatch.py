import subprocess
import sys

import pytest

from scorers import stopwatch as module
from scorers.stopwatch import stopwatch

BUSY = "import os, time\nos.sched_setaffinity(0, {CORE})\nend = time.time() + 3\nwhile time.time() < end: pass"

# Half a second of CPU time.
SPIN = "while time.process_time() < 0.5: pass"
CHILD = f"import time\n{SPIN}"


@pytest.mark.skipif(not module._SCHEDULER.exists(), reason="the kernel has no scheduler statistics")
@pytest.mark.parametrize("work", [SPIN, f"subprocess.run([sys.executable, '-c', {CHILD!r}])"], ids=["own", "child"])
def test_time_spent_waiting_for_the_core_is_not_counted(work):
    code = f"""
import os, subprocess, sys, time
from scorers.stopwatch import stopwatch
core = min(os.sched_getaffinity(0))
os.sched_setaffinity(0, {{core}})
other = subprocess.Popen([sys.executable, "-c", {BUSY!r}.replace("CORE", str(core))])
with stopwatch() as took:
    {work}
other.kill(); other.wait()
print(took.seconds, took.waited)
"""
    # If the parent of a child never waited itself, it cannot see that the child did: rare, and never three times.
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds, waited = map(float, done.stdout.split())
        if waited:
            break
    # Half a second, plus the child's start; the other process has used the core for as long.
    assert 0.3 < seconds < 2
    assert waited > 0.2


def test_without_scheduler_statistics_wall_time_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_SCHEDULER", tmp_path / "none")
    with stopwatch() as took:
        sum(range(100_000))
    assert took.waited == 0
    assert took.seconds > 0
    assert took.share == 1
