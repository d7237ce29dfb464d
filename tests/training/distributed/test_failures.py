"""Failures outside phf are reported as such, wherever in a run they occur."""

import pytest
import torch

from scorers.errors import IncompleteError
from tests.training.jobs import run_job
from training.distributed.errors import RankError
from training.distributed.failures import failures_named
from training.engine.engine import Engine
from training.loop.train import TrainingJob


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            "memory of the GPU.*micro_batch_size",
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory of this machine.*offload"),
        (torch.distributed.DistBackendError("NCCL communicator was aborted"), "Another rank is gone"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"), "Another rank is gone"),
    ],
)
def test_libraries_words_become_ours(error, message):
    with pytest.raises(IncompleteError, match=message), failures_named():
        raise error


def test_a_rank_that_runs_out_of_memory_says_so_itself(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(RankError, match=r"on rank 3 \(\S+\): The memory of the GPU") as raised, failures_named():
        raise torch.OutOfMemoryError("CUDA out of memory.")
    assert raised.value.exit_code == IncompleteError.exit_code


def test_a_mistake_stays_one():
    with pytest.raises(RuntimeError, match="shape") as raised, failures_named():
        raise RuntimeError("mat1 and mat2 have a wrong shape")
    assert not isinstance(raised.value, IncompleteError)


@pytest.mark.parametrize(("owner", "name"), [(Engine, "train_step"), (Engine, "state_dict"), (TrainingJob, "_export")])
def test_memory_that_runs_out_leaves_a_run_that_goes_on(tmp_path, code_dataset, monkeypatch, owner, name):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(owner, name, full)
    with pytest.raises(IncompleteError, match=r"activation_checkpointing=true"):
        run_job(code_dataset, tmp_path / "run")
    monkeypatch.undo()
    less = {"training__micro_batch_size": 2, "training__activation_checkpointing": "true"}
    assert run_job(code_dataset, tmp_path / "run", **less)[0].status == "finished"
