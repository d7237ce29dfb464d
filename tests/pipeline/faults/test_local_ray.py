"""A local Ray whose head dies; simulated by programs of the same names."""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.labelling.on_ray import local
from pipeline.labelling.on_ray.cluster import ray_cluster
from pipeline.labelling.on_ray.head import HeadLostError, HeadWatch
from pipeline.labelling.on_ray.local import local_ray
from scorers.errors import IncompleteError, UserError

Program = Callable[[str], "subprocess.Popen[bytes]"]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    monkeypatch.setattr(local.tempfile, "tempdir", str(tmp_path))
    logs = tmp_path / "session_1" / "logs"
    logs.mkdir(parents=True)
    (logs / "gcs_server.out").write_text("many\n" * 100 + "its last words\n")
    begun: list[subprocess.Popen[bytes]] = []

    def begin(name: str) -> "subprocess.Popen[bytes]":
        shutil.copy(str(shutil.which("sleep")), tmp_path / name)
        begun.append(subprocess.Popen([str(tmp_path / name), "60"]))
        return begun[-1]

    yield begin
    for each in begun:
        each.kill()
        each.wait()


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_a_head_that_dies_during_the_start_is_noticed_at_once(name: str, program: Program, tmp_path: Path) -> None:
    def start() -> None:
        head = program(name)
        threading.Timer(0.5, head.kill).start()
        time.sleep(3)
        starts.append(head.pid)

    starts: list[int] = []
    began = time.monotonic()
    with pytest.raises(HeadLostError, match=f"its {name} was killed") as lost, local_ray(start, tmp_path):
        pass
    assert time.monotonic() - began < 10
    assert len(starts) == 1  # the second attempt is still under way
    kept = Path(str(lost.value).rpartition(" are in ")[2].rstrip("."))
    assert "its last words" in kept.read_text()
    assert kept.stat().st_mode & 0o077 == 0


def test_a_head_that_dies_later_is_reported_to_callers(program: Program, tmp_path: Path) -> None:
    with local_ray(lambda: program("gcs_server"), tmp_path):
        watch = HeadWatch("127.0.0.1:1")
        watch.check()
        children = Path("/proc/self/task")
        pids = {int(pid) for each in children.glob("*/children") for pid in each.read_text().split()}
        time.sleep(1)  # until the watch has found it
        for pid in pids:
            if local._program(pid) == "gcs_server":
                os.kill(pid, signal.SIGKILL)
        with pytest.raises(HeadLostError, match="gcs_server"):
            for _ in range(100):
                watch.check()
                time.sleep(0.1)
    watch.check()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("Bad port."), UserError),
        (RuntimeError("timed out"), IncompleteError),
        (Exception("x"), IncompleteError),
    ],
)
def test_a_start_that_fails_is_status_4_unless_the_settings_are_wrong(
    error: Exception, kind: type[UserError], tmp_path: Path
) -> None:
    starts: list[None] = []

    def start() -> None:
        starts.append(None)
        raise error

    with pytest.raises(UserError) as failed, local_ray(start, tmp_path):
        pass
    assert type(failed.value) is kind
    assert len(starts) == (1 if kind is UserError else 2)
    assert str(error).rstrip(".") in str(failed.value)


def test_a_start_is_not_repeated_over_a_connection_to_the_dead_head(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[int] = []

    def start() -> None:
        head = program("raylet")
        threading.Timer(0.3, head.kill).start()
        time.sleep(1)
        starts.append(head.pid)

    monkeypatch.setattr("ray.is_initialized", lambda: True)
    with pytest.raises(HeadLostError, match="its raylet was killed"), local_ray(start, tmp_path):
        pass
    assert len(starts) == 1


def test_a_start_whose_raylet_dies_is_tried_once_more(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_first_raylet() -> None:
        while not killed:
            for task in Path("/proc/self/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    for pid in map(int, task.read_text().split()):
                        if local._program(pid) == "raylet":
                            os.kill(pid, signal.SIGKILL)
                            killed.append(pid)
            time.sleep(0.05)

    threading.Thread(target=kill_first_raylet, daemon=True).start()
    with ray_cluster(None, cpus=1) as resources:
        assert resources["CPU"] == 1
    assert killed
