"""`phf train --on ray`, on a local Ray and on a joined cluster, gives the same run as ranks on this machine."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.training.jobs import (
    ENVIRONMENT,
    LONGER,
    command,
    figures,
    job_config,
    make_code_dataset,
    run_phf,
    undisturbed_run,
)
from training.data.prepare import prepare
from training.runs.folder import RunFolder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset prepared for training, so that ranks start at once."""
    made = make_code_dataset(tmp_path_factory.mktemp("on-ray") / "labelled")
    prepare(job_config(made, made.parent / "run"))
    return made


def start(dataset: Path, output: Path, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *command(dataset, output, "awr", **LONGER), "--ranks", "2", "--on", "ray", *options],
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=output.parent,
    )


def ranks_of(driver: int) -> dict[int, psutil.Process]:
    """Return the processes of the ranks on a local Ray, by rank."""
    found = {}
    for child in psutil.Process(driver).children(recursive=True):
        try:
            if child.cmdline()[1:4] == ["-m", "phf", "train"]:
                found[int(child.environ()["RANK"])] = child
        except psutil.Error:
            continue
    return found


def at_step(process: "subprocess.Popen[str]", output: Path, step: int) -> dict[int, psutil.Process]:
    deadline = time.monotonic() + 300
    lines = output / "metrics.jsonl"
    while not (lines.is_file() and lines.read_text().count("\n") >= step):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return ranks_of(process.pid)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """The same run with ranks on this machine."""
    return undisturbed_run(tmp_path_factory.getbasetemp(), dataset)


@pytest.mark.slow
def test_lost_ranks_and_lost_workers_leave_the_curve_of_ranks_on_one_machine(
    tmp_path: Path, dataset: Path, whole: Path
) -> None:
    output = tmp_path / "run"
    with start(dataset, output, "--max-restarts", "2", "--json") as process:
        first = at_step(process, output, 12)
        first[1].kill()
        first[0].wait(60)
        second = at_step(process, output, 24)
        # Its Ray worker dies, and the rank must die with it, or two ranks would write into the same folder.
        second[0].parent().kill()  # type: ignore[union-attr]
        second[0].wait(10)
        stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert "Rank 1 was killed by SIGKILL; starting again from the newest checkpoint (restart 1 of 2)" in stderr
    assert "Rank 0 was lost with its Ray worker or its machine; starting again" in stderr
    assert "(restart 2 of 2)" in stderr
    assert "Run: awr on style" in stderr
    assert stdout.startswith("{")
    assert '"status": "finished"' in stdout
    for noise in ("Traceback", "defect of phf", "ray.", "WARNING"):
        assert noise not in stderr, stderr
    assert not any(rank.is_running() for ranks in (first, second) for rank in ranks.values())
    assert figures(output) == figures(whole)


@pytest.mark.slow
def test_ranks_on_ray_stop_cleanly_and_the_run_resumes_anywhere(tmp_path: Path, dataset: Path, whole: Path) -> None:
    output = tmp_path / "run"
    with start(dataset, output) as process:
        ranks = at_step(process, output, 12)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 75, stderr
    assert "Run: awr on style" in stdout
    stopped = RunFolder(output).read_facts()
    assert stopped.status == "stopped"
    assert 12 <= stopped.step < 60
    assert stderr.count("asked to stop after step") == 1
    for noise in ("Traceback", "defect of phf", "ray.", "WARNING"):
        assert noise not in stderr, stderr
    assert not any(rank.is_running() for rank in ranks.values())
    done = run_phf([*command(dataset, output, "awr", **LONGER), "--ranks", "2"])
    assert done.returncode == 0, done.stderr
    assert f"step {stopped.step} of 60" in done.stdout
    assert figures(output) == figures(whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ranks", "3", "--on", "ray"), "cannot be divided among 3 ranks"),
        (("--on", "ray", "--model", "/no/model"), "Cannot load model"),
        (("--on", "ray", "--address", "127.0.0.1:9"), "Cannot join the Ray cluster 127.0.0.1:9"),
        (("--on", "ray", "--address", "ray://head:10001"), "start the command on a machine of the cluster"),
    ],
)
def test_an_error_is_reported_once_before_ray_is_used(
    tmp_path: Path, dataset: Path, options: tuple[str, ...], message: str
) -> None:
    done = run_phf([*command(dataset, tmp_path / "run", training__batch_size=8), *options, "--max-restarts", "2"])
    assert done.returncode == 2, done.stderr
    assert done.stderr.count(message) == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "run").exists()


def alive_nodes(port: int) -> int:
    """The number of nodes that the head at a port lists as alive."""
    from ray._private.state import GlobalState
    from ray._raylet import GcsClientOptions

    state = GlobalState()
    state._initialize_global_state(
        GcsClientOptions.create(f"127.0.0.1:{port}", None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
    )
    return sum(node["Alive"] for node in state.node_table())


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A Ray cluster of two nodes with one core each; the second one has another file system at a folder."""
    from tests.pipeline.network import free_port

    private = tmp_path / "private"
    private.mkdir()
    port = free_port()
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1", "--block", "--disable-usage-stats"]
    head = [*ray, "--head", f"--port={port}", "--include-dashboard=false"]
    node = [*ray, f"--address=127.0.0.1:{port}"]
    hide = ["unshare", "--mount", "bash", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"', str(private)]
    started: list[subprocess.Popen[bytes]] = []
    begun: list[subprocess.Popen[bytes]] = []

    def begin(arguments: list[str]) -> None:
        """Start a node, and return when the cluster lists it."""
        # A raylet ends itself when its agents take over 15 s to start, as they may on a busy machine.
        for attempt in range(3):
            with (tmp_path / f"node-{len(started)}").open("wb") as log:
                # A head would require the token that another Ray has left in the home folder, which no node has.
                environment = {**os.environ, **ENVIRONMENT, "RAY_AUTH_MODE": "disabled"}
                process = subprocess.Popen(arguments, env=environment, stdout=log, stderr=subprocess.STDOUT)
            started.append(process)
            deadline = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < deadline:
                if "Ray runtime started" in Path(log.name).read_text() and alive_nodes(port) > len(begun):
                    begun.append(process)
                    return
                time.sleep(0.2)
            assert attempt < 2, Path(log.name).read_text()
            process.kill()

    try:
        begin(head)
        begin([*hide, *node])
        yield f"127.0.0.1:{port}", private
    finally:
        below = []
        for process in started:
            # A process that has just ended is still our zombie; its children may end while they are listed.
            with contextlib.suppress(psutil.NoSuchProcess):
                below += psutil.Process(process.pid).children(recursive=True)
        for each in [*started, *below]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        for process in started:
            process.wait()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a separate file system takes root")
def test_nodes_without_room_can_be_left_and_nodes_that_do_not_share_the_output_are_named(
    tmp_path: Path, dataset: Path, two_nodes: tuple[str, Path]
) -> None:
    address, private = two_nodes
    output = private / "run"
    with start(dataset, output, "--address", address, "--cpus-per-rank", "9") as process:
        # No node has so many cores, and none will join.
        assert process.stderr is not None
        assert process.stderr.readline() == "Ray Train starts 2 ranks of 9 CPU each.\n"
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=100)
    assert process.returncode == 75, stderr
    assert stderr == "Stopped: stopped before any rank was started. The same command continues.\n"

    with start(dataset, output, "--address", address) as process:
        _, stderr = process.communicate(timeout=200)
    assert process.returncode == 2, stderr
    assert "Error: Folders must be on a file system that all nodes of the Ray cluster share: on " in stderr
    assert f"there is no folder {private}" in stderr or f"--output {output} does not hold" in stderr
    assert stderr.count("Error:") == 1
    assert "Traceback" not in stderr
    assert list(private.iterdir()) == []
