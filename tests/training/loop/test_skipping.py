"""A state that is not finite is never saved, removes no checkpoint, and the run resumes from the last good one."""

import math
import os
import signal

import numpy as np
import pytest

from scorers.errors import StoppedError, UserError
from tests.training.jobs import figures, job_config, metrics, run_job
from training.data.batches import Batch
from training.data.prepare import prepare
from training.engine.engine import Engine
from training.export.checkpoint import export_checkpoint
from training.loop.continuation import StartOptions
from training.loop.trainer import DivergedError, Trainer
from training.runs import checkpoints
from training.runs.folder import RunFolder

EVERY_OTHER = {"training__save_every": 2, "training__keep_checkpoints": 2}
UNTIED = {"model__overrides": "{tie_word_embeddings: false}"}


def spoil(engine, place=0):
    """Make a weight of the first table NaN, as a broken memory cell might."""
    for weights in (next(engine.model.parameters()), engine._adam.param_groups[0]["params"][0]):
        weights.data.view(-1)[place] = math.nan


def after_steps(monkeypatch, act):
    """Call `act(engine, step)` after each step of this process, counted from 1."""
    done, step = [], Engine.train_step

    def train_step(engine, *arguments):
        outcome = step(engine, *arguments)
        done.append(outcome)
        act(engine, len(done))
        return outcome

    monkeypatch.setattr(Engine, "train_step", train_step)


def without_numbers(monkeypatch, numbers):
    """Make the rewards of these steps of this process, counted from 1, NaN, and with them the loss of `rwr`."""
    count, step = [], Engine.train_step

    def train_step(engine, batch, *arguments):
        count.append(1)
        if len(count) in numbers:
            batch = Batch(batch.input_ids, np.full_like(batch.scores, np.nan))
        return step(engine, batch, *arguments)

    monkeypatch.setattr(Engine, "train_step", train_step)


def saved(output):
    return checkpoints.steps(output / "checkpoints")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, code_dataset):
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    run_job(code_dataset, output, "rwr", objective__beta=0.1)
    return figures(output)


@pytest.mark.parametrize("beside", ["false", "true"])
def test_weights_that_are_no_numbers_are_not_saved(tmp_path, code_dataset, monkeypatch, undisturbed, beside):
    changes = {**EVERY_OTHER, "objective__beta": 0.1, "training__save_async": beside}
    with monkeypatch.context() as patch:
        after_steps(patch, lambda engine, step: spoil(engine) if step == 6 else None)
        with pytest.raises(
            DivergedError, match=r"not finite after step 6, so .* newest checkpoint is of step 4\. The sa"
        ):
            run_job(code_dataset, tmp_path / "run", "rwr", **changes)
    assert saved(tmp_path / "run") == [2, 4]
    facts = RunFolder(tmp_path / "run").read_facts()
    assert (facts.status, facts.saved) == ("failed", 4)
    _, printed = run_job(code_dataset, tmp_path / "run", "rwr", **changes)
    assert "step 4 of 12" in printed
    assert figures(tmp_path / "run") == undisturbed


def test_so_is_a_weight_that_no_loss_shows(tmp_path, code_dataset, monkeypatch):
    data = prepare(job_config(code_dataset, tmp_path / "run", **UNTIED))
    seen = np.unique(np.concatenate([data.batches.batch(step).input_ids for step in range(12)]))
    unseen = np.setdiff1d(np.arange(data.tokenizer.size()), seen)[0]

    def act(engine, step):
        if step == 5:
            spoil(engine, unseen * engine.model.causal.config.hidden_size)

    after_steps(monkeypatch, act)
    with pytest.raises(DivergedError, match=r"not finite after step 8"):
        run_job(code_dataset, tmp_path / "run", **UNTIED, training__save_every=4)
    assert all(math.isfinite(line["loss"]) for line in metrics(tmp_path / "run"))
    assert saved(tmp_path / "run") == [4]


def test_a_step_whose_update_was_skipped_is_not_saved_and_the_next_is(tmp_path, code_dataset, monkeypatch):
    done = []
    commit = checkpoints.commit
    monkeypatch.setattr(checkpoints, "commit", lambda *a, **k: done.append(a[1]) or commit(*a, **k))
    without_numbers(monkeypatch, {6, 7})
    changes = {**EVERY_OTHER, "objective__beta": 0.1, "training__schedule": "wsd", "training__decay_ratio": 0.5}
    run_job(code_dataset, tmp_path / "run", "rwr", **changes)
    assert done == [2, 4, 8, 10, 12]
    # The rate decays from step 6 on, so a longer run goes on from the checkpoint before.
    assert saved(tmp_path / "run") == [4, 10, 12]
    assert [line["loss"] for line in metrics(tmp_path / "run")][5:7] == [None, None]
    # How many were skipped is counted over all processes of a run.
    run_job(code_dataset, tmp_path / "run", "rwr", **changes, options=StartOptions(10))
    assert [line.get("skipped", 0) for line in metrics(tmp_path / "run")] == [0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2]


def test_stopped_while_updates_are_skipped_it_goes_on_from_the_last_good_step(
    tmp_path, code_dataset, monkeypatch, undisturbed
):
    with monkeypatch.context() as patch:
        without_numbers(patch, {6, 7, 8, 9})
        after_steps(patch, lambda _, step: os.kill(os.getpid(), signal.SIGTERM) if step == 7 else None)
        with pytest.raises(StoppedError, match=r"after step 7 of 12, whose loss .* is not saved.* from step 4\."):
            run_job(code_dataset, tmp_path / "run", "rwr", **EVERY_OTHER, objective__beta=0.1)
    assert saved(tmp_path / "run") == [2, 4]
    facts = RunFolder(tmp_path / "run").read_facts()
    assert (facts.status, facts.step) == ("stopped", 4)
    run_job(code_dataset, tmp_path / "run", "rwr", **EVERY_OTHER, objective__beta=0.1)
    assert figures(tmp_path / "run") == undisturbed


@pytest.mark.parametrize("most", [3, 10])
def test_a_run_that_ends_without_numbers_is_not_finished(tmp_path, code_dataset, monkeypatch, most):
    with monkeypatch.context() as patch:
        without_numbers(patch, {8, 9, 10, 11, 12})
        with pytest.raises(DivergedError, match=r"newest checkpoint is of step 6\b"):
            run_job(
                code_dataset, tmp_path / "run", "rwr", **EVERY_OTHER, objective__beta=0.1, training__max_skipped=most
            )
    assert saved(tmp_path / "run") == [4, 6]
    assert not RunFolder(tmp_path / "run").model.exists()
    run_job(code_dataset, tmp_path / "run", "rwr", **EVERY_OTHER, objective__beta=0.1)
    assert saved(tmp_path / "run") == [10, 12]


def test_stopped_at_a_spike_that_step_is_saved_besides_the_others(tmp_path, code_dataset, monkeypatch):
    original = Trainer._is_lost

    def is_lost(trainer, outcome):
        found = original(trainer, outcome)
        if trainer.step >= 6:  # as if the guard had found spikes
            trainer._skipped_in_a_row = 1
        return found

    monkeypatch.setattr(Trainer, "_is_lost", is_lost)
    after_steps(monkeypatch, lambda _, step: os.kill(os.getpid(), signal.SIGTERM) if step == 9 else None)
    with pytest.raises(StoppedError, match="the state is saved in"):
        run_job(code_dataset, tmp_path / "run", **EVERY_OTHER)
    assert saved(tmp_path / "run") == [2, 4, 9]


def test_a_checkpoint_without_numbers_of_an_earlier_version_is_refused(tmp_path, code_dataset, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "is_finite", lambda _: True)
        after_steps(patch, lambda engine, step: spoil(engine) if step == 12 else None)
        run_job(code_dataset, tmp_path / "run", **EVERY_OTHER)
    run = RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match=r"step-00000012 holds weights that are not finite, in .*wte.* --step"):
        export_checkpoint(run, 12, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
    assert export_checkpoint(run, 10, tmp_path / "exported") == 10
    run.write_facts(run.read_facts().model_copy(update={"status": "running"}))
    with pytest.raises(UserError, match=r"step-00000012 holds weights that are not finite.*Move it away"):
        run_job(code_dataset, tmp_path / "run", **EVERY_OTHER)
    (run.checkpoints / "step-00000012").rename(tmp_path / "away")
    _, printed = run_job(code_dataset, tmp_path / "run", **EVERY_OTHER)
    assert "step 10 of 12" in printed


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")])
def test_every_stage_sees_what_is_no_number_in_weights_and_moments(stage, precision):
    from tests.training.engine.test_engine import batch, make
    from training.distributed.world import World

    world = World.from_environment()
    world.start()
    engine, loss = make(world, zero_stage=stage, precision=precision)
    engine.train_step(batch(0), loss, 1e-3)
    assert engine.is_finite()
    moments = [value for state in engine._adam.state.values() for value in state.values() if value.ndim]
    weights = list(engine._adam.state)
    for tensor in (*moments, *weights):
        before = tensor.data.view(-1)[-1].clone()
        for bad in (math.inf, math.nan):
            tensor.data.view(-1)[-1] = bad
            assert not engine.is_finite()
        tensor.data.view(-1)[-1] = before
    assert engine.is_finite()
    engine.close()
    assert len(moments) == 2 * len(weights) > 0
