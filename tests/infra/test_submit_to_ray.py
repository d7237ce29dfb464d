"""`phf submit --on ray`: what is refused before anything is submitted, and both jobs on a real cluster with a token."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web

from infra.ray import client
from infra.ray.log import JobLog
from scorers.errors import UserError
from tests.pipeline.label_job import Labelling, data_hashes, wait_for
from tests.pipeline.network import free_port
from tests.training import real_runs
from tests.training.jobs import ENVIRONMENT, make_code_dataset, settings
from training.runs.folder import RunFolder

TOKEN = "4" * 64
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class Cluster:
    """A Ray head of two cores, the folder that jobs are submitted from, and the environment of `phf`."""

    api: str
    made: Labelling
    env: dict[str, str]

    def phf(self, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run phf in the folder."""
        return subprocess.run(
            [sys.executable, "-m", "phf", *words],
            cwd=self.made.folder,
            env=self.env | environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def submit(self, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Submit a job to the cluster."""
        return self.phf("submit", *words, "--on", "ray", "--ray-api", self.api, **environment)

    def job(self, name: str) -> dict[str, Any]:
        """What `phf jobs` says of a job."""
        done = self.phf("jobs", name, "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head that requires a token."""
    made = Labelling(tmp_path_factory.mktemp("ray"))
    made.write([f"One of {number}. Two. {'x' * 200}" for number in range(24)])
    env = {**made.env, **ENVIRONMENT, "PYTHONPATH": made.env["PYTHONPATH"], "HOME": str(made.folder / "home")}
    (made.folder / "home").mkdir()
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    port, api = free_port(), free_port()
    bin_ = Path(sys.executable).parent
    with (made.folder / "head.log").open("wb") as log:
        head = subprocess.Popen(
            [
                *(str(bin_ / "ray"), "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"),
                *(f"--port={port}", f"--dashboard-port={api}", f"--dashboard-agent-listen-port={free_port()}"),
                f"--ray-client-server-port={free_port()}",
            ],
            env=env | token | {"PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{api}"

    def serves() -> bool:
        assert head.poll() is None, (made.folder / "head.log").read_text()
        request = urllib.request.Request(f"{address}/api/jobs/", headers=AUTHORIZED)
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    try:
        wait_for(serves)
        yield Cluster(address, made, env | token)
    finally:
        below = psutil.Process(head.pid).children(recursive=True)
        for each in [head, *below]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        head.wait()


def test_what_a_cluster_cannot_do_is_refused_before_it_is_asked(tmp_path: Path) -> None:
    made = Labelling(tmp_path)
    made.write(["One. Two."])
    here = Cluster("http://127.0.0.1:9", made, made.env | {"XDG_STATE_HOME": str(tmp_path / "state")})
    label = ("label", "corpus", "--output", "out", "--scorer", "pii")
    for words, message in (
        (label, "Ray's Jobs API does not answer at http://127.0.0.1:9. Give the address"),
        ((*label, "--workers", "0"), "--workers 0 labels without Ray"),
        ((*label, "--address", "head:6379"), "the place decides --address: leave that out. --ray-api says which"),
        ((*label, "--nodes", "2"), "--nodes means nothing with --on ray"),
        ((*label, "--ray-api", "head:8265"), "--ray-api head:8265 is no URL"),
        ((*label, "--ray-api", "http://user:hunter2@head:8265"), "holds a secret"),
        ((*label, "--threshold", "pep8=0"), "pep8"),
        ((*label, "--cpus", "2", "--gpus", "1"), "--cpus and --gpus: with --on ray only for a sweep"),
        (("sweep", "missing.yaml"), "missing.yaml"),
    ):
        done = here.submit(*words) if "--ray-api" not in words else here.phf("submit", *words, "--on", "ray")
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "hunter2" not in done.stderr
        assert done.stderr.count("\n") == 1
    assert json.loads(here.phf("jobs", "--json").stdout) == []
    dry = here.submit(*label, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert dry.stdout.endswith("exec phf label --address auto --output out --scorer pii corpus\n")
    # The folder of the sweep is the head's: what is here does not matter.
    (made.folder / "sweep").write_text("")
    write_sweep(made.folder)
    dry = here.submit("sweep", "sweep.yaml", "--gpus", "8", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert dry.stdout.startswith("# Ray reserves 8 GPUs.\n")
    assert dry.stdout.endswith("exec phf sweep sweep.yaml\n")


def write_sweep(folder: Path) -> None:
    """Write the file of a sweep with two short runs."""
    spec = {
        "dataset": "pep8",
        "out": "sweep",
        "objectives": ["mle", "conditional"],
        "settings": {
            "task": "pep8",
            "model": {"name": "nano"},
            "data": {"vocab_size": 300, "context_length": 64},
            "training": {"num_tokens": 5 * 4 * 64, "batch_size": 4, "validate_every": 0},
            "tracking": {"tensorboard": False},
        },
        "evaluate": {"num_samples": 2, "max_new_tokens": 8, "leakage_samples": 2, "held_out_documents": 4},
    }
    (folder / "sweep.yaml").write_text(json.dumps(spec))


def test_a_cluster_that_accepts_and_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match="has not answered for 1 s"), client.connect(address):
            pytest.fail("it answered")


def test_no_line_of_a_log_is_lost_or_comes_twice_when_its_stream_is_cut() -> None:
    text = "".join(f"{number} ü\n" for number in range(100))
    sent = [0]
    streams: list[web.WebSocketResponse] = []

    async def tail(request: web.Request) -> web.WebSocketResponse:
        streams.append(stream := web.WebSocketResponse())
        await stream.prepare(request)
        at = 0
        while True:
            # Ray cuts lines too, if they are long.
            while at < sent[0]:
                await stream.send_str(text[at : min(at + 7, sent[0])])
                at = min(at + 7, sent[0])
            if len(streams) == 1 and at:
                # Without the words that end a stream.
                request.transport.abort()
                return stream
            await asyncio.sleep(0.01)

    async def whole(request: web.Request) -> web.Response:
        return web.json_response({"logs": text})

    async def version(request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})

    there = web.Application()
    there.router.add_get("/api/version", version)
    there.router.add_get("/api/jobs/label-1/logs/tail", tail)
    there.router.add_get("/api/jobs/label-1/logs", whole)
    with served(there) as address:
        log = JobLog(address, "label-1")
        found = b""
        for size in (100, 200, 201):
            sent[0] = size

            def reads(size: int = size) -> bool:
                nonlocal found
                found += log.read(ended=False)
                return len(found.decode()) == size

            wait_for(reads, 60)
        assert len(streams) == 2
        found += log.read(ended=True)
        assert log.read(ended=True) == b""
    assert found.decode() == text


@contextlib.contextmanager
def served(application: web.Application) -> Iterator[str]:
    """Serve an application in a thread."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    loop.run_until_complete(runner.setup())
    port = free_port()
    loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", port).start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.slow
def test_labelling_is_cancelled_and_continues_on_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    made = cluster.made
    made.run_undisturbed("--unit-size", "1000", output=tmp_path / "undisturbed")
    made.hold(made.scored().total() + 8)
    words = [*made.command("--unit-size", "1000")[3:]]
    refused = cluster.submit(*words, RAY_AUTH_TOKEN="5" * 64)
    assert refused.returncode == 2, refused.stderr
    assert "requires a token" in refused.stderr
    assert TOKEN not in refused.stderr

    submitted = cluster.submit(*words)
    assert submitted.returncode == 0, submitted.stderr
    job = submitted.stdout.strip()

    def works() -> bool:
        assert cluster.job(job)["state"] in ("queued", "running"), cluster.phf("jobs", job).stdout
        return bool(made.committed())

    wait_for(works)
    again = cluster.submit(*words)
    assert again.returncode == 2
    # Also where this user has no record of it.
    elsewhere = cluster.submit(*words, XDG_STATE_HOME=str(tmp_path / "state"))
    for done in (again, elsewhere):
        assert (done.returncode, job in done.stderr) == (2, True), done.stderr

    assert cluster.phf("jobs", job, "--cancel").returncode == 0
    made.release()
    wait_for(lambda: cluster.job(job)["state"] == "cancelled")
    assert "the same command continues" in cluster.phf("jobs", job).stdout
    assert not (made.output / "manifest.json").exists()

    assert cluster.submit(*words).stdout.strip() == job
    followed = cluster.phf("jobs", job, "--follow")
    assert followed.returncode == 0, followed.stdout
    assert "is finished" in followed.stderr
    assert data_hashes(made.output) == data_hashes(tmp_path / "undisturbed")
    records = [path for path in made.folder.rglob("*") if path.is_file() and path.stat().st_size < 1_000_000]
    assert not [path for path in records if TOKEN.encode() in path.read_bytes()]


@pytest.mark.slow
def test_ranks_train_on_the_cluster(cluster: Cluster) -> None:
    make_code_dataset(cluster.made.folder / "code", ["bisect", "glob", "queue"])
    given = [word for setting in settings(data__held_out=0) for word in ("--set", setting)]
    words = ["train", "code", "--task", "style", "--model", "nano", "--output", "run", "--ranks", "2", *given]
    submitted = cluster.submit(*words)
    assert submitted.returncode == 0, submitted.stderr
    job = submitted.stdout.strip()
    followed = cluster.phf("jobs", job, "--follow")
    assert followed.returncode == 0, followed.stdout
    submission = cluster.job(job)["handle"]["submission"]
    request = urllib.request.Request(f"{cluster.api}/api/jobs/{submission}/logs", headers=AUTHORIZED)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert followed.stdout == json.loads(answer.read())["logs"]
    facts = RunFolder(cluster.made.folder / "run").read_facts()
    assert (facts.status, facts.step) == ("finished", 12)


@pytest.mark.slow
def test_a_sweep_is_one_job_on_a_machine_with_room(cluster: Cluster) -> None:
    real_runs.make_code_dataset(cluster.made.folder / "pep8", 10)
    write_sweep(cluster.made.folder)
    job = cluster.submit("sweep", "sweep.yaml", "--cpus", "1").stdout.strip()
    followed = cluster.phf("jobs", job, "--follow")
    assert followed.returncode == 0, followed.stdout
    assert (cluster.made.folder / "sweep" / "comparison" / "index.html").is_file()
    record = json.loads(cluster.phf("jobs", job, "--json").stdout)
    assert (record["state"], record["tasks"]) == ("finished", {})
