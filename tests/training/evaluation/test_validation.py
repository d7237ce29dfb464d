"""The validation loss: on by default, cheap, and the same after a resume."""

import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from scorers.errors import StoppedError, UserError
from tests.training.engine.test_engine import batch, make
from tests.training.jobs import job_config, metrics, run_job
from training.config import TrainingConfig
from training.data.prepare import prepare
from training.distributed.world import World
from training.engine.engine import Engine
from training.evaluation.held_out_loss import held_out_loss
from training.evaluation.validation import CountedLoss, choose_validation
from training.export.checkpoint import best_step
from training.model.language_model import load_model
from training.runs.best import read
from training.runs.checkpoints import steps as saved_steps
from training.runs.folder import RunFolder

DEFAULT = {"training__validate_every": "null"}


def validations(output):
    return {line["step"]: line["validation"] for line in metrics(output) if "validation" in line}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, code_dataset):
    output = tmp_path_factory.mktemp("validated") / "run"
    changes = {"training__validate_every": 5, "training__save_every": 2, "training__keep_checkpoints": 9}
    _, printed = run_job(code_dataset, output, "conditional", **changes)
    return output, changes, printed


def test_it_is_measured_every_so_many_steps_and_at_the_last_and_shown(undisturbed):
    output, _, printed = undisturbed
    found = validations(output)
    assert list(found) == [5, 10, 12]
    assert found[5]["loss"] > found[12]["loss"] > 0
    assert f"step 12/12  validation loss {found[12]['loss']:.4f}  {found[12]['bits_per_byte']:.4f} bits per" in printed
    facts = RunFolder(output).read_facts().validation
    plan = printed[: printed.index("step 1/12")]
    assert f"every 5 steps and at the last: {facts.tokens:,} tokens of {facts.documents} of" in plan
    assert {step: each["validation_loss"] for step, each in read(output / "checkpoints").items()} == {
        step: each["loss"] for step, each in found.items()
    }


def test_it_is_what_an_evaluation_measures_on_the_same_documents(undisturbed, code_dataset, monkeypatch):
    output, changes, _ = undisturbed
    data = prepare(job_config(code_dataset, output, "conditional", **changes))
    # The run is so short that it reads the beginning of one document; here some of them whole.
    monkeypatch.setattr("training.evaluation.validation._MOST_TOKENS", 40_000)
    validation = choose_validation(data, 10**6, 10**6)
    assert 1 < validation.documents < len(data.stream.held_out_documents())
    order = np.random.default_rng(0).permutation(data.stream.held_out_documents())
    documents = [data.stream.document(int(index)) for index in order[: validation.documents]]
    model = load_model(output / "model")
    expected = held_out_loss(model.causal, documents, context_length=32)
    assert validation.bytes == expected.sizes.sum()
    assert validation.tokens == expected.tokens.sum()
    model.eval()
    with torch.no_grad():
        nats = [
            float(model(torch.from_numpy(each.input_ids), CountedLoss(), torch.from_numpy(each.scores), 1)[0])
            for each in validation.batches
        ]
    found = validation.figures(nats)
    assert found["bits_per_byte"] == pytest.approx(expected.bits.sum() / expected.sizes.sum(), rel=1e-5)
    assert found["loss"] == pytest.approx(expected.nats.sum() / expected.tokens.sum(), rel=1e-5)


def test_training_is_not_disturbed_and_figures_are_equal_after_a_resume(
    tmp_path, undisturbed, code_dataset, monkeypatch
):
    output, changes, _ = undisturbed
    run_job(code_dataset, tmp_path / "without", "conditional")
    losses = [line["loss"] for line in metrics(output) if "loss" in line]
    assert losses == [line["loss"] for line in metrics(tmp_path / "without")]
    original = Engine.totals

    def asked_meanwhile(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    # Asked to stop while it is validated, it is when it goes on.
    monkeypatch.setattr(Engine, "totals", asked_meanwhile)
    monkeypatch.setattr("training.evaluation.held_out_loss.TOKENS_AT_ONCE", 32)
    with pytest.raises(StoppedError):
        run_job(code_dataset, tmp_path / "stopped", "conditional", **changes)
    monkeypatch.undo()
    assert validations(tmp_path / "stopped") == {}
    assert saved_steps(tmp_path / "stopped/checkpoints") == [2, 4, 5]
    run_job(code_dataset, tmp_path / "stopped", "conditional", **changes)
    assert metrics_without_time(tmp_path / "stopped") == metrics_without_time(output)


def metrics_without_time(output):
    names = ("step", "loss", "validation", "grad_norm")
    return [{name: line[name] for name in names if name in line} for line in metrics(output)]


def test_by_default_it_takes_little_of_the_time(tmp_path, code_dataset):
    data = prepare(job_config(code_dataset, tmp_path / "run", **DEFAULT))
    for steps, tokens in [(1, 128), (12, 128), (1000, 128), (10_000, 65_536)]:
        found = choose_validation(data, steps, tokens)
        assert 1 <= math.ceil(steps / found.every) <= 51
        # Once, at the end of a short run, it is a twentieth; else a fiftieth, and once more at the end.
        assert found.share_of_time(steps, tokens) < (0.09 if steps == 1 else 0.05 if found.every > steps else 0.03)
        assert found.read <= 1 << 16
    # As little as there may be is read, the first tokens of a document.
    assert choose_validation(data, 1, 128).read == 32
    assert choose_validation(data, 10_000, 65_536).every == 200


def test_without_held_out_text_that_is_a_warning_and_no_best_metric(tmp_path, code_dataset):
    _, printed = run_job(code_dataset, tmp_path / "run", **DEFAULT, data__held_out=0)
    assert "Warning: no document is held out of training (data.held_out is 0), so there is no validation" in printed
    assert validations(tmp_path / "run") == {}
    best = {"training__best_metric": "validation_loss", "training__save_every": 4}
    for changes, message in [
        ({"data__held_out": 0, **DEFAULT}, r"set data\.held_out above 0"),
        ({"training__validate_every": 0}, r"never measured with training\.validate_every=0"),
        ({"training__validate_every": 6}, r"validate_every=6 is not a multiple of training\.save_every=4"),
        ({"data__held_out": 1e-9, **DEFAULT}, r"data\.held_out=1e-09 of 12 documents is none"),
    ]:
        with pytest.raises(UserError, match=message):
            run_job(code_dataset, tmp_path / "best", **best, **changes)


def test_the_best_checkpoint_is_chosen_by_it(tmp_path, code_dataset):
    best = {"training__best_metric": "validation_loss", "training__save_every": 4, "training__keep_best": 1}
    _, printed = run_job(code_dataset, tmp_path / "run", **best, **DEFAULT, training__keep_checkpoints=1)
    found = validations(tmp_path / "run")
    assert list(found) == [4, 8, 12]
    lowest = min(found, key=lambda step: found[step]["loss"])
    assert best_step(RunFolder(tmp_path / "run")) == lowest
    assert f"By validation_loss, the best checkpoint is that of step {lowest}" in printed


@pytest.mark.parametrize("stage", [0, 3])
def test_a_total_is_of_the_counted_tokens_and_leaves_training_alone(stage):
    world = World.from_environment()
    world.start()

    def train(validated):
        engine, loss = make(world, "awr", zero_stage=stage)
        found = []
        for number in range(3):
            if validated:
                counted = replace(batch(9), scores=(np.arange(16) % 2 * np.ones((4, 1))).astype(np.float32))
                total = engine.totals(counted, CountedLoss())["counted"]
                assert 0.5 < total / (4 * 8 * math.log(64)) < 1.5
            found.append(float(engine.train_step(batch(number), loss, 1e-3).loss))
        engine.close()
        return found

    assert train(False) == train(True)
    assert TrainingConfig().validate_every is None
