"""Two real ranks on gloo give the same numbers as one under every launcher, and report errors once."""

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
from tests.training.jobs import COMPARABLE, ENVIRONMENT, LONGER, command, figures, job_config, metrics, run_job, run_phf
from training.data.prepare import prepare
from training.distributed.slurm_environment import first_host
from training.distributed.world import World
from training.model.language_model import VALUE_HEAD_FILE, load_model
from training.runs.folder import RunFolder

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module", autouse=True)
def prepared(tmp_path_factory, code_dataset):
    prepare(job_config(code_dataset, tmp_path_factory.mktemp("prepared") / "run"))


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def waits_for_the_other_rank(output):
    lines = metrics(output)
    for line in lines:
        seconds = line["seconds"]
        assert list(seconds) == ["data", "forward", "backward", "optimizer", "communication"]
        assert min(seconds.values()) > 0
    tokens = lines[0]["tokens"]
    assert all(sum(line["seconds"].values()) <= tokens / line["tokens_per_second"] + 1e-6 for line in lines)


@pytest.mark.slow
def test_weights_that_only_rank_0_has_made_are_those_of_a_run_without_partitions(tmp_path, code_dataset):
    changes = {
        "training__num_tokens": 6 * 4 * 32,
        "data__document_masking": "true",
        "training__adam_epsilon": COMPARABLE,
    }
    run_job(code_dataset, tmp_path / "one", "conditional", **changes)
    changes |= {"training__zero_stage": 3, "model__pad_vocab_to": 128}
    done = run_phf(command(code_dataset, tmp_path / "two", "conditional", **changes), launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    for mine, theirs in zip(figures(tmp_path / "two"), figures(tmp_path / "one"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    waits_for_the_other_rank(tmp_path / "two")
    ours, other = (load_model(tmp_path / each / "model").causal.state_dict() for each in ("two", "one"))
    torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_ranks_give_the_losses_of_one(tmp_path, code_dataset, undisturbed):
    waits_for_the_other_rank(undisturbed)
    run_job(code_dataset, tmp_path / "one", "awr", **LONGER)
    pairs = list(zip(metrics(tmp_path / "one"), metrics(undisturbed), strict=True))
    assert len(pairs) == 60
    for one, other in pairs:
        # What rounds differently grows with the steps.
        allowed = 1e-5 if one["step"] <= 20 else 1e-3
        for name in one.keys() - {"tokens_per_second", "mfu", "peak_memory", "seconds", "saving"}:
            assert other[name] == pytest.approx(one[name], abs=allowed, rel=10 * allowed), (one["step"], name)
    printed = (undisturbed.parent / "printed").read_text()
    assert "4 micro x 1 accumulation x 2 ranks = 8 blocks" in printed
    assert printed.count("step 1/60") == 1
    facts = RunFolder(undisturbed).read_facts()
    assert (facts.horizon.ranks, facts.status) == (2, "finished")
    assert (undisturbed / "model" / VALUE_HEAD_FILE).exists()


@pytest.mark.slow
def test_two_ranks_stop_together_and_go_on_exactly_or_as_one(tmp_path, code_dataset, undisturbed):
    parts = command(code_dataset, tmp_path / "parts", "awr", **LONGER)
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
        _, stderr = process.communicate(timeout=200)
    stopped = RunFolder(tmp_path / "parts").read_facts()
    assert stopped.status == "stopped", stderr
    assert 3 <= stopped.step < 60
    assert stderr.count("asked to stop after step") == 1
    shutil.copytree(tmp_path / "parts", tmp_path / "alone")
    _, printed = run_job(code_dataset, tmp_path / "alone", "awr", **LONGER)
    assert f"written by 2 ranks: step {stopped.step} of 60" in printed
    assert RunFolder(tmp_path / "alone").read_facts().horizon.ranks == 1
    for one, other in zip(metrics(undisturbed), metrics(tmp_path / "alone"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4 if one["step"] <= stopped.step + 10 else 1e-3)
    done = run_phf(parts, launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    assert f"step {stopped.step} of 60" in done.stdout
    assert figures(tmp_path / "parts") == figures(undisturbed)


# Stands in for ssh to other machines: every host is this one.
PDSH = """#!/usr/bin/env bash
[[ "$*" == *pkill* ]] && exit
hosts=${5//,/ } number=0 status=0
shift 5
for host in $hosts; do
  bash -c "${*//%n/$number}" &
  number=$((number + 1))
done
for job in $(jobs -p); do wait "$job" || status=$?; done
exit $status
"""


@pytest.mark.slow
def test_the_deepspeed_launcher_starts_the_same_on_the_hosts_of_a_file(tmp_path, code_dataset, monkeypatch):
    (tmp_path / "pdsh").write_text(PDSH)
    (tmp_path / "pdsh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 slots=1\nlocalhost slots=1\n")
    # It puts `--local_rank=N` before the command.
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hosts), "--no_ssh_check"]
    module, name, *rest = command(code_dataset, tmp_path / "run")
    assert module == "-m"
    there = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    done = run_phf(["--module", name, *rest], launcher=[*launcher, *there])
    assert done.returncode == 0, done.stdout + done.stderr
    assert RunFolder(tmp_path / "run").read_facts().horizon.ranks == 2
    run_job(code_dataset, tmp_path / "one")
    for first, second in zip(figures(tmp_path / "one"), figures(tmp_path / "run"), strict=True):
        assert second == pytest.approx(first, abs=1e-5, rel=1e-4)


def slurm_task(number, **more):
    """The variables that `srun` sets for one of two tasks on this machine."""
    return {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
        "SLURM_NODEID": "0",
        **more,
    }


@pytest.mark.slow
def test_tasks_of_slurm_are_ranks_and_its_signal_stops_them_resumable(tmp_path, code_dataset):
    output = tmp_path / "run"
    arguments = [sys.executable, *command(code_dataset, output, training__num_tokens=5000 * 4 * 32)]
    ranks = [
        subprocess.Popen(
            arguments,
            env={**os.environ, **ENVIRONMENT, **slurm_task(number)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        for number in range(2)
    ]
    deadline = time.monotonic() + 200
    lines = output / "metrics.jsonl"
    while not (lines.is_file() and lines.read_text().count("\n") >= 3):
        assert time.monotonic() < deadline
        assert all(rank.poll() is None for rank in ranks), [rank.communicate() for rank in ranks]
        time.sleep(0.01)
    for rank in ranks:
        rank.send_signal(signal.SIGUSR1)
        # A task elsewhere may hear of it when the others have stopped already.
        time.sleep(1)
    outputs = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [75, 75], outputs
    stopped = RunFolder(output).read_facts()
    assert (stopped.status, stopped.horizon.ranks) == ("stopped", 2)
    assert "".join(outputs).count("asked to stop after step") == 1


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
        # Not `os.environ` itself: what is written there would stay.
        monkeypatch.setattr("os.environ", {name: value for name, value in os.environ.items() if "SLURM" not in name})
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)

    def test_alone_without_a_launcher(self):
        world = World.from_environment()
        assert (world.rank, world.size, world.is_main) == (0, 1, True)

    def test_what_a_launcher_says_is_read(self, monkeypatch):
        variables = {
            "RANK": 5,
            "LOCAL_RANK": 1,
            "WORLD_SIZE": 8,
            "LOCAL_WORLD_SIZE": 4,
            "MASTER_ADDR": "a",
            "MASTER_PORT": 1,
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        world = World.from_environment()
        assert (world.rank, world.local_rank, world.size, world.local_size, world.is_main) == (5, 1, 8, 4, False)

    def test_half_an_environment_is_refused(self, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(UserError, match=r"WORLD_SIZE is 2, but .* are not all set.*torchrun"):
            World.from_environment()

    @pytest.mark.parametrize("variable", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
    def test_what_is_no_number_is_refused(self, monkeypatch, variable):
        monkeypatch.setenv(variable, "abc")
        with pytest.raises(UserError, match=rf"{variable} is 'abc', which is not a number.*torchrun"):
            World.from_environment()

    def test_a_task_of_slurm_finds_its_place_among_unequal_nodes(self, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        variables = slurm_task(17, SLURM_STEP_NUM_TASKS="20", SLURM_STEP_TASKS_PER_NODE="8(x2),4", SLURM_NODEID="2")
        os.environ.update(variables, SLURM_LOCALID="1", SLURM_STEP_NODELIST="gpu[007-008,12]-ib", SLURM_JOB_ID="41")
        world = World.from_environment()
        assert (world.rank, world.local_rank, world.size, world.local_size) == (17, 1, 20, 4)
        assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu007-ib", "15041")

    @pytest.mark.parametrize("more", [{"SLURM_STEP_NUM_TASKS": "1"}, {"WORLD_SIZE": "1"}])
    def test_one_task_and_another_launcher_in_it_are_not_slurms_ranks(self, more):
        os.environ.update(slurm_task(0, **more))
        assert World.from_environment().size == 1

    def test_a_batch_script_is_alone_whatever_its_job_has(self):
        os.environ.update(SLURM_NTASKS="16", SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_JOB_ID="41")
        assert World.from_environment().size == 1


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("login", "login"),
        ("a,b[1-2]", "a"),
        ("n[3-5]", "n3"),
        ("gpu[003,005-9],x", "gpu003"),
        ("rack[2-3]n[10,11]", "rack2n10"),
        ("p[1,2]-s", "p1-s"),
    ],
)
def test_the_first_host_of_a_list_is_found(nodes, first):
    assert first_host(nodes) == first
