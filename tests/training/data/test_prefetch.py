"""Prefetched batches are ready in advance, equal those without prefetching, and leave no thread behind."""

import threading

import numpy as np
import pytest
import torch

from tests.training.jobs import run_job
from training.data.batches import Batch, BatchSource
from training.data.prefetch import Prefetcher

CPU = torch.device("cpu")


def number_batch(step):
    return Batch(np.full((2, 3), step, dtype=np.int64), np.full((2, 3), step / 2, dtype=np.float32))


def threads():
    return [each for each in threading.enumerate() if each.name.startswith("batches")]


def test_each_step_gets_its_own_batch_in_any_order():
    with Prefetcher(number_batch, 10, CPU) as batches:
        for step in (0, 1, 1, 2, 7, 3, 9, 12, 0):
            batch = batches.get(step)
            assert torch.equal(batch.input_ids, torch.full((2, 3), step))
            assert torch.equal(batch.scores, torch.full((2, 3), step / 2))
            assert (batch.input_ids.dtype, batch.scores.dtype) == (torch.int64, torch.float32)
        assert len(threads()) == 1
    assert not threads()


def test_the_next_batches_are_prefetched_up_to_the_limit():
    loaded, enough = [], threading.Event()

    def load(step):
        loaded.append(step)
        if step == 2:
            enough.set()
        return number_batch(step)

    with Prefetcher(load, 4, CPU, ahead=2) as batches:
        batches.get(0)
        assert enough.wait(10)
        assert loaded == [0, 1, 2]
        assert [int(batches.get(step).input_ids[0, 0]) for step in (1, 2, 3)] == [1, 2, 3]
    assert loaded == [0, 1, 2, 3]


def test_an_error_in_the_thread_is_raised_by_get():
    def load(step):
        if step == 2:
            raise OSError(5, "Input/output error")
        return number_batch(step)

    with pytest.raises(OSError, match="Input/output"), Prefetcher(load, 10, CPU) as batches:
        batches.get(0)
        batches.get(1)
        batches.get(2)
    assert not threads()


def test_leaving_the_context_ends_the_thread_after_its_current_batch():
    entered, go_on = threading.Event(), threading.Event()
    loaded = []

    def load(step):
        loaded.append(step)
        if step == 1:
            entered.set()
            go_on.wait(10)
        return number_batch(step)

    with pytest.raises(KeyboardInterrupt), Prefetcher(load, 100, CPU) as batches:
        batches.get(0)
        assert entered.wait(10)
        threading.Timer(0.05, go_on.set).start()
        raise KeyboardInterrupt
    assert not threads()
    assert loaded == [0, 1]


def test_an_unreadable_batch_ends_the_run_with_its_error(tmp_path, code_dataset, monkeypatch):
    original = BatchSource.rank_batch

    def fail(source, step, rank, world):
        if step == 5:
            raise OSError(116, "Stale file handle")
        return original(source, step, rank, world)

    monkeypatch.setattr(BatchSource, "rank_batch", fail)
    with pytest.raises(OSError, match="Stale file handle"):
        run_job(code_dataset, tmp_path / "run", training__save_every=2)
    assert not threads()
    monkeypatch.undo()
    facts, printed = run_job(code_dataset, tmp_path / "run", training__save_every=2)
    assert "step 4 of 12" in printed
    assert facts.status == "finished"
    assert not threads()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_for_a_gpu_are_in_page_locked_memory():
    with Prefetcher(number_batch, 10, torch.device("cuda", 0)) as batches:
        batch = batches.get(0)
        assert batch.input_ids.is_pinned()
        assert batch.scores.is_pinned()
