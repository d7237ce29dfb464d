"""A rank whose disk no longer answers ends and writes the stacks of its threads."""

import os
import subprocess
import sys

import pytest

from tests.training.jobs import ENVIRONMENT, ROOT
from training.distributed.watchdog import Watchdog

# Stands for a read or a write on a network file system whose server is gone.
HANGING = """
import sys, time
from pathlib import Path
from tests.training.jobs import run_job
from training.data.batches import BatchSource
from training.runs import checkpoints

def does_not_answer(*_, **__):
    time.sleep(600)

place, name = {"data": (BatchSource, "rank_batch"), "checkpoint": (checkpoints, "describe")}[sys.argv[1]]
setattr(place, name, does_not_answer)
run_job(Path(sys.argv[2]), Path(sys.argv[3]), training__hang_timeout_s=8, training__save_every=2, **eval(sys.argv[4]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "changes"), [("data", {}), ("checkpoint", {}), ("checkpoint", {"training__save_async": True})]
)
def test_a_disk_that_does_not_answer_ends_the_rank_in_bounded_time(tmp_path, code_dataset, what, changes):
    output = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", HANGING, what, str(code_dataset), str(output), repr(changes)],
        env={**os.environ, **ENVIRONMENT},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "rank 0 has hung for 8 s (training.hang_timeout_s)" in done.stderr
    assert "Traceback" not in done.stderr
    (stacks,) = (output / "stacks").iterdir()
    assert "does_not_answer" in stacks.read_text()


def test_what_ends_by_an_error_leaves_no_empty_file(tmp_path):
    folder = tmp_path / "stacks"
    with pytest.raises(RuntimeError), Watchdog(folder, 0, 60).running():
        assert list(folder.iterdir())
        raise RuntimeError
    assert not folder.exists()


def test_what_was_written_and_what_others_write_stays(tmp_path):
    for name in ("rank-00000-1.txt", "rank-00001-2.txt"):
        (tmp_path / name).write_text("a stack" * (name < "rank-00001"))
    with pytest.raises(RuntimeError), Watchdog(tmp_path, 0, 60).running():
        raise RuntimeError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank-00000-1.txt", "rank-00001-2.txt"]
