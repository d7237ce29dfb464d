"""`phf-again` reruns a command only after 4 and 75, and not after a request to stop."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from infra.rerun import run_again


def counting(folder: Path, *statuses: int) -> list[str]:
    """Return a command that exits with these statuses, one after the other."""
    code = (
        "import pathlib, sys; file = pathlib.Path(sys.argv[1]); done = len(file.read_text()) if file.exists() else 0; "
        f"file.write_text('x' * (done + 1)); sys.exit({list(statuses)}[done])"
    )
    return [sys.executable, "-c", code, str(folder / "calls")]


@pytest.mark.parametrize(
    ("statuses", "last", "calls"),
    [
        ((0,), 0, 1),
        ((2, 0), 2, 1),
        ((3, 0), 3, 1),
        ((1, 0), 1, 1),
        ((70, 0), 70, 1),
        ((4, 75, 0), 0, 3),
        ((75,) * 5, 75, 4),
    ],
)
def test_only_4_and_75_are_rerun(tmp_path: Path, statuses: tuple[int, ...], last: int, calls: int) -> None:
    assert run_again(counting(tmp_path, *statuses), times=3, wait_s=0) == last
    assert len((tmp_path / "calls").read_text()) == calls


def test_a_command_killed_by_a_signal_is_not_rerun() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert run_again([sys.executable, "-c", code], times=1, wait_s=0) == 128 + signal.SIGKILL


def test_a_signal_is_passed_on_and_ends_the_reruns(tmp_path: Path) -> None:
    child = (
        "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
        "pathlib.Path('ready').touch(); time.sleep(60)"
    )
    # Use the module: the console script may be missing in an older install of phf.
    command = [sys.executable, "-c", "from infra.rerun import main; main()", sys.executable, "-c", child]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == 75
    assert printed == b""


SAVING = """
import pathlib, sys, time
from scorers.stopping import StopRequest, asking, stoppable
asked = []
try:
    with stoppable(), asking(asked.append):
        pathlib.Path("ready").touch()
        while not asked:
            time.sleep(0.01)
        time.sleep(2)
        print("saved")
except BaseException:
    print("abandoned")
sys.exit(75)
"""


def test_a_command_that_was_signalled_too_saves_its_work(tmp_path: Path) -> None:
    # `ray job stop` signals every process of a job.
    command = [sys.executable, "-c", "from infra.rerun import main; main()", sys.executable, "-c", SAVING]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.01)
    (child,) = psutil.Process(process.pid).children()
    process.terminate()
    # A slow head, and no second request: that would end the command at once.
    time.sleep(1.2)
    child.terminate()
    printed, _ = process.communicate(timeout=30)
    assert (process.returncode, printed) == (75, "saved\n")


def test_the_usage_is_printed() -> None:
    code = "from infra.rerun import main; main()"
    assert subprocess.run([sys.executable, "-c", code, "--help"], check=False, timeout=30).returncode == 2
