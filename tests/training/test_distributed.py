"""Two real ranks on gloo: the same numbers as one, whoever launches them; and errors that are said once."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from scorers.errors import UserError
from tests.training.jobs import ENVIRONMENT, command, figures, job_config, metrics, run_job, run_phf
from training.data.prepare import prepare
from training.model.language_model import load_model
from training.run.distributed import World
from training.run.folder import RunFolder

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module", autouse=True)
def prepared(tmp_path_factory, code_dataset):
    prepare(job_config(code_dataset, tmp_path_factory.mktemp("prepared") / "run"))


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


CHANGES = {"training__batch_size": 8, "training__num_tokens": 60 * 8 * 32}


@pytest.fixture(scope="module")
def two(tmp_path_factory, code_dataset):
    """A run of 60 steps on two ranks: its folder, and what the command printed."""
    output = tmp_path_factory.mktemp("distributed") / "two"
    done = run_phf(command(code_dataset, output, "awr", **CHANGES), launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    return output, done


@pytest.mark.slow
def test_weights_that_only_rank_0_has_made_are_those_of_a_run_without_partitions(tmp_path, code_dataset):
    changes = {"training__num_tokens": 6 * 4 * 32, "data__document_masking": "true"}
    run_job(code_dataset, tmp_path / "one", "conditional", **changes)
    changes |= {"training__zero_stage": 3, "model__pad_vocab_to": 128}
    done = run_phf(command(code_dataset, tmp_path / "two", "conditional", **changes), launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    for mine, theirs in zip(figures(tmp_path / "two"), figures(tmp_path / "one"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    ours, other = (load_model(tmp_path / each / "model").causal.state_dict() for each in ("two", "one"))
    torch.testing.assert_close(ours, other, rtol=1e-2, atol=2e-3)


@pytest.mark.slow
def test_two_ranks_give_the_losses_of_one(tmp_path, code_dataset, two):
    output, done = two
    run_job(code_dataset, tmp_path / "one", "awr", **CHANGES)
    pairs = list(zip(metrics(tmp_path / "one"), metrics(output), strict=True))
    assert len(pairs) == 60
    for one, other in pairs:
        # What rounds differently grows with the steps.
        allowed = 1e-5 if one["step"] <= 20 else 1e-3
        for name in one.keys() - {"tokens_per_second", "mfu", "peak_memory", "seconds"}:
            assert other[name] == pytest.approx(one[name], abs=allowed, rel=10 * allowed), (one["step"], name)
    assert "4 micro x 1 accumulation x 2 ranks = 8 blocks" in done.stdout
    assert done.stdout.count("step 1/60") == 1
    facts = RunFolder(output).read_facts()
    assert (facts.horizon.ranks, facts.status) == (2, "finished")
    assert (output / "model/value_head.safetensors").exists()


@pytest.mark.slow
def test_two_ranks_stop_together_and_go_on_exactly_or_as_one(tmp_path, code_dataset, two):
    parts = command(code_dataset, tmp_path / "parts", "awr", **CHANGES)
    with subprocess.Popen(
        [*TORCHRUN, *parts],
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        deadline = time.monotonic() + 200
        lines = tmp_path / "parts" / "metrics.jsonl"
        while not (lines.is_file() and lines.read_text().count("\n") >= 3):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=200)
    stopped = RunFolder(tmp_path / "parts").read_facts()
    assert stopped.status == "stopped", said
    assert 3 <= stopped.step < 60
    assert said.count("asked to stop after step") == 1
    shutil.copytree(tmp_path / "parts", tmp_path / "alone")
    alone = run_phf(command(code_dataset, tmp_path / "alone", "awr", **CHANGES))
    assert alone.returncode == 0, alone.stderr
    assert f"written by 2 ranks: step {stopped.step} of 60" in alone.stdout
    assert RunFolder(tmp_path / "alone").read_facts().horizon.ranks == 1
    for one, other in zip(metrics(two[0]), metrics(tmp_path / "alone"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4 if one["step"] <= stopped.step + 10 else 1e-3)
    done = run_phf(parts, launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    assert f"step {stopped.step} of 60" in done.stdout
    assert figures(tmp_path / "parts") == figures(two[0])


@pytest.mark.slow
def test_the_deepspeed_launcher_starts_the_same(tmp_path, code_dataset):
    # The launcher puts `--local_rank=N` before the command.
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--master_port"]
    module, name, *rest = command(code_dataset, tmp_path / "run")
    assert module == "-m"
    done = run_phf(["--module", name, *rest], launcher=[*launcher, str(free_port())])
    assert done.returncode == 0, done.stdout + done.stderr
    run_job(code_dataset, tmp_path / "one")
    for first, second in zip(figures(tmp_path / "one"), figures(tmp_path / "run"), strict=True):
        assert second == pytest.approx(first, abs=1e-5, rel=1e-4)


@pytest.mark.slow
def test_an_error_is_said_once_and_ends_every_rank(tmp_path, code_dataset):
    began = time.monotonic()
    done = run_phf(command(code_dataset, tmp_path / "run", training__batch_size=3), launcher=TORCHRUN)
    assert done.returncode != 0
    assert done.stderr.count("Error: training.batch_size=3 cannot be divided among 2 ranks") == 1
    assert time.monotonic() - began < 120
    assert not (tmp_path / "run").exists()


class TestEnvironment:
    @pytest.fixture(autouse=True)
    def clean(self, monkeypatch):
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)

    def test_alone_without_a_launcher(self):
        world = World.from_environment()
        assert (world.rank, world.size, world.is_main) == (0, 1, True)

    def test_what_a_launcher_says_is_read(self, monkeypatch):
        says = {
            "RANK": 5,
            "LOCAL_RANK": 1,
            "WORLD_SIZE": 8,
            "LOCAL_WORLD_SIZE": 4,
            "MASTER_ADDR": "a",
            "MASTER_PORT": 1,
        }
        for name, value in says.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        world = World.from_environment()
        assert (world.rank, world.local_rank, world.size, world.local_size, world.is_main) == (5, 1, 8, 4, False)

    def test_half_an_environment_is_refused(self, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(UserError, match=r"WORLD_SIZE is 2, but .* are not all set.*torchrun"):
            World.from_environment()
