"""Joining a Ray cluster: it serves the metrics, its logs contain no text, and it may require a token."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pipeline import leaky
from tests.pipeline.label_job import Labelling, alive, descendants, wait_for
from tests.pipeline.labelling.test_canary import check_dataset, prepared
from tests.pipeline.labelling.test_metrics import by_label, scrape
from tests.pipeline.network import free_port

pytestmark = pytest.mark.slow


@dataclass
class Head:
    """A Ray head: its addresses for clients and drivers, its metrics port, and its folder."""

    address: str
    drivers: str
    metrics_port: int
    folder: Path


@contextlib.contextmanager
def ray_head(env: dict[str, str], cwd: Path | None = None) -> Iterator[Head]:
    """Run `ray start --head` in a working directory while the context is active."""
    folder = Path(tempfile.mkdtemp(prefix="phf-h", dir="/tmp"))
    port, client_port, metrics_port = free_port(), free_port(), free_port()
    process = subprocess.Popen(
        [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2"),
            *("--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}", f"--port={port}"),
            *(f"--ray-client-server-port={client_port}", f"--metrics-export-port={metrics_port}"),
        ],
        env=env,
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def answers() -> bool:
        # Its agents start last, and without them no driver can join.
        assert process.poll() is None
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", client_port), 1),
            socket.create_connection(("127.0.0.1", metrics_port), 1),
        ):
            return True
        return False

    try:
        wait_for(answers, 120)
        yield Head(f"ray://127.0.0.1:{client_port}", f"127.0.0.1:{port}", metrics_port, folder)
    finally:
        started = descendants(process.pid)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        for pid in alive(started | {process.pid}):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def at_home(made: Labelling, token: str) -> dict[str, str]:
    """The command's environment, where only the user's home contains a token for Ray."""
    folder = made.folder / "home"
    (folder / ".ray").mkdir(parents=True)
    (folder / ".ray" / "auth_token").write_text(token)
    plain = {name: value for name, value in made.env.items() if not name.startswith("RAY_AUTH")}
    return plain | {"HOME": str(folder)}


def test_a_joined_cluster_serves_the_metrics_and_keeps_no_text(tmp_path: Path) -> None:
    made: Labelling = prepared(tmp_path, leaky.POISON)
    # The cluster requires a token, which the driver must find.
    made.env = at_home(made, "1" * 64)
    with ray_head(made.env | {"RAY_metrics_report_interval_ms": "1000"}) as head:
        result = made.run(
            *("--address", head.address, "--unit-size", "600", "--log", "run.log", "--max-quarantined", "100"),
            *("--set", "execution.deadline_s=0.5", "--set", "max_record_size=2500"),
        )
        assert result.returncode == 0, result.stderr
        manifest = json.loads((made.output / "manifest.json").read_text())
        ledger = manifest["ledger"]

        def served() -> bool:
            return by_label(scrape(head.metrics_port), "phf_records_total") == {"": ledger["records"]}

        wait_for(served, 30)
        figures = scrape(head.metrics_port)
        assert by_label(figures, "phf_quarantined_total", "reason") == ledger["quarantined"]
        assert by_label(figures, "phf_sentences_total") == {"": manifest["sentences"]}
        logs = [path.name for path in head.folder.rglob("*") if path.is_file()]
        assert any(name.startswith("worker-") and name.endswith(".err") for name in logs), logs
        assert list(leaky.leaks([head.folder, tmp_path / "run.log"])) == []
        check_dataset(made.output)
        assert not any(leaky.traces(text.encode(), leaky.forms()) for text in (result.stdout, result.stderr))


def test_a_cluster_that_requires_a_token_gets_the_users(tmp_path: Path) -> None:
    made = Labelling(tmp_path)
    made.write(["One. Two."])
    own, others = "1" * 64, "2" * 64
    base = at_home(made, own)
    with ray_head(base) as head:

        def label(address: str, **changes: str) -> "subprocess.CompletedProcess[str]":
            made.env = base | changes
            return made.run("--address", address)

        for address, changes, message in (
            (head.address, {"HOME": str(tmp_path)}, f"into RAY_AUTH_TOKEN, or into {tmp_path}/.ray/auth_token"),
            (head.drivers, {"RAY_AUTH_TOKEN": others}, "refuses the one in RAY_AUTH_TOKEN"),
            (
                head.drivers,
                {"RAY_AUTH_TOKEN": own, "RAY_AUTH_MODE": "disabled"},
                "RAY_AUTH_MODE=disabled withholds",
            ),
        ):
            result = label(address, **changes)
            assert result.returncode == 2, result.stderr
            assert f"The Ray cluster {address} requires a token" in result.stderr
            assert message in result.stderr
            assert not any(token in result.stderr for token in (own, others))
        # Not through a Ray client, because the heads on one machine share the client ports.
        result = label(head.drivers, RAY_AUTH_TOKEN=own)
        assert result.returncode == 0, result.stderr


def test_one_process_alternates_between_a_local_ray_and_a_cluster(tmp_path: Path) -> None:
    made = Labelling(tmp_path)
    with ray_head(at_home(made, "1" * 64)) as head:
        script = f"""
import os, ray
from pipeline.labelling.on_ray.cluster import ray_cluster
before = dict(os.environ)
for address in (None, {head.drivers!r}, None):
    with ray_cluster(address, 1):
        print(ray.get(ray.remote(os.getenv).remote("nothing", os.environ["RAY_AUTH_TOKEN"])))
    assert os.environ.get("RAY_AUTH_MODE") == before.get("RAY_AUTH_MODE")
"""
        environment = at_home(Labelling(tmp_path / "other"), "0" * 64) | {"RAY_AUTH_TOKEN": "1" * 64}
        result = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
        )
    assert result.returncode == 0, result.stderr
    first, of_the_cluster, last = result.stdout.split()
    assert of_the_cluster == "1" * 64
    assert len({first, of_the_cluster, last}) == 3
