"""Padded embeddings train like unpadded ones, and padding rows are never visible."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from phf import app
from scorers.errors import UserError
from tests.training.jobs import COMPARABLE, command, figures, run_job
from tests.training.model.test_models import small_llama
from tests.training.test_linear_loss import compute_with_gradients, inputs_of
from tests.training.test_objectives import EXAMPLES
from training.config import ModelConfig, TrainingConfig
from training.data.batches import Batch
from training.distributed.world import World
from training.engine.engine import Engine
from training.linear_loss import linear_loss
from training.measuring_config import EvaluationConfig
from training.model.counting import count_parameters, flops_per_token
from training.model.language_model import build_model, load_model
from training.model.sampling import sample
from training.model.vocabulary import Vocabulary
from training.objectives import build
from training.schedule import plan_horizon

SIZE = 67


def make(name="nano", multiple=128, **options):
    torch.manual_seed(0)
    return build_model(ModelConfig(name=name), Vocabulary(SIZE, 0), rows_multiple=multiple, **options)


@pytest.mark.parametrize(("name", "options"), EXAMPLES)
def test_padding_rows_have_no_probability_and_no_gradient(name, options):
    objective = build(name, **options)
    (hidden, weight, bias, values), labels, scores = inputs_of(3, 9, 21)
    expected, their_gradients = compute_with_gradients(
        linear_loss, objective, (hidden, weight, bias, values), labels, scores
    )
    # Regardless of their values: here they would be by far the likeliest tokens.
    padded = (hidden, torch.cat([weight, 50 * weight[:11]]), torch.cat([bias, 30 + bias[:11]]), values)
    found, gradients = compute_with_gradients(
        linear_loss, objective, padded, labels, scores, vocabulary=21, chunk_tokens=5
    )
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    for mine, theirs in zip(gradients, their_gradients, strict=True):
        if len(mine) == 32:
            assert not mine[21:].any()
            mine = mine[:21]
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("linear_head", [True, False])
@pytest.mark.parametrize("tie", [True, False])
def test_a_padded_model_is_the_same_model(tmp_path, tie, linear_head):
    small_llama(tie=tie).save_pretrained(tmp_path)
    objective = build("awr", alpha=0.5, beta=1.0)
    ids = torch.randint(0, SIZE, (2, 12), generator=torch.Generator().manual_seed(1))
    found = []
    for multiple in (1, 128):
        model = make(str(tmp_path), multiple, value_head=True)
        assert model.has_linear_head
        model.has_linear_head = linear_head
        loss, _ = model(ids, objective=objective, scores=torch.ones(2, 12))
        loss.backward()
        logits, values = model(ids)
        gradients = {name: each.grad for name, each in model.named_parameters()}
        gradients = model.padding.remove(gradients, prefix="causal.")
        counts = (*count_parameters(model), flops_per_token(model, 12))
        found.append((loss, logits, values, gradients, counts))
        rows = model.causal.get_input_embeddings().weight
        assert len(rows) == model.padding.rows == (SIZE if multiple == 1 else 128)
        assert not rows[SIZE:].any()
        assert not rows.grad[SIZE:].any()
        assert (model.causal.get_output_embeddings().weight is rows) == tie
    assert found[0][1].shape == (2, 12, SIZE)
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", [1, 3])
def test_padding_does_not_change_training_and_is_not_exported(tmp_path, stage):
    world = World.from_environment()
    world.start()
    config = TrainingConfig(
        batch_size=4, micro_batch_size=2, zero_stage=stage, learning_rate=1e-2, adam_epsilon=COMPARABLE
    )
    objective = build("unlikelihood", threshold=0.5, alpha=1.0)

    def engine(multiple):
        return Engine(make(multiple=multiple), config, plan_horizon(config, 16, 1), world, "fp32")

    def losses(engine, numbers):
        found = []
        for number in numbers:
            generator = np.random.default_rng(number)
            ids = generator.integers(0, SIZE, (4, 16))
            batch = Batch(ids, generator.random((4, 16), dtype=np.float32))
            found.append(engine.train_step(batch, objective, 1e-2).loss.item())
        return found

    plain, padded = engine(1), engine(128)
    assert losses(padded, range(4)) == pytest.approx(losses(plain, range(4)), rel=1e-5)
    weights, theirs = padded.state_dict(), plain.state_dict()
    assert {name: each.shape for name, each in weights.items()} == {name: each.shape for name, each in theirs.items()}
    torch.testing.assert_close(weights, theirs, rtol=1e-4, atol=1e-5)
    whole = padded.whole_model()
    assert whole(input_ids=torch.arange(9)[None]).logits.shape[-1] == SIZE
    padded.save(tmp_path)
    resumed = engine(128)
    resumed.load(tmp_path)
    assert losses(resumed, range(4, 6)) == losses(padded, range(4, 6))
    if stage < 3:
        assert not padded.model.causal.get_input_embeddings().weight[SIZE:].any()
    for each in (plain, padded, resumed):
        each.close()


def test_a_run_with_padding_equals_one_without(tmp_path, code_dataset):
    plain, _ = run_job(code_dataset, tmp_path / "plain", "conditional", training__adam_epsilon=COMPARABLE)
    padded, _ = run_job(
        code_dataset, tmp_path / "padded", "conditional", training__adam_epsilon=COMPARABLE, model__pad_vocab_to=128
    )
    assert (plain.model.rows, padded.model.rows) == (402, 512)
    assert padded.model.parameters == plain.model.parameters
    for mine, theirs in zip(figures(tmp_path / "padded"), figures(tmp_path / "plain"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    ours, other = (load_model(tmp_path / each / "model").causal for each in ("padded", "plain"))
    assert ours.config.vocab_size == ours.get_input_embeddings().num_embeddings == 402
    torch.testing.assert_close(ours.state_dict(), other.state_dict(), rtol=1e-4, atol=1e-5)
    # Another run initialised from it is padded again.
    start = ModelConfig(name=str(tmp_path / "padded" / "model"), pretrained=True)
    again = build_model(start, Vocabulary(402, 0), rows_multiple=128)
    assert (again.padding.size, again.padding.rows) == (402, 512)
    assert torch.equal(again.causal.get_input_embeddings().weight[:402], ours.get_input_embeddings().weight)


def test_a_run_does_not_resume_with_other_padding(tmp_path, code_dataset):
    run_job(code_dataset, tmp_path / "run")
    arguments = command(code_dataset, tmp_path / "run", model__pad_vocab_to=64)[2:]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "rows of the embedding (model.pad_vocab_to): 400 in the run, 448 now" in " ".join(result.output.split())


def test_padding_is_never_sampled_while_training():
    causal = make().causal
    with torch.no_grad():
        causal.get_input_embeddings().weight[SIZE:] = 100.0
    config = EvaluationConfig(num_samples=16, max_new_tokens=8, top_p=1.0, temperature=5.0)
    drawn = sample(causal, eos_id=0, prompt_ids=[0], banned_ids=[], config=config, seed=0)
    assert max(max(row, default=0) for row in drawn.ids) < SIZE
    written = causal.generate(torch.zeros(8, 1, dtype=torch.long), do_sample=True, max_new_tokens=8, pad_token_id=0)
    assert written.max() < SIZE


def test_unsupported_embeddings_are_not_padded(monkeypatch):
    from transformers import GPT2LMHeadModel

    assert make(multiple=None).padding.rows == 128

    class Head(torch.nn.Module):
        weight = torch.zeros(SIZE, 64)

    monkeypatch.setattr(GPT2LMHeadModel, "get_output_embeddings", lambda self: Head())
    with pytest.raises(UserError, match=r"model\.pad_vocab_to: the embeddings of GPT2LMHeadModel .* Set it to 1"):
        make()
    assert make(multiple=None).padding.rows == SIZE
    monkeypatch.undo()
    # An architecture whose logits bypass its output embedding.
    forward = GPT2LMHeadModel.forward

    def beside(self, *args, **options):
        output = forward(self, *args, **options)
        output.logits = torch.zeros(*output.logits.shape[:-1], 128)
        return output

    monkeypatch.setattr(GPT2LMHeadModel, "forward", beside)
    with pytest.raises(UserError, match=r"GPT2LMHeadModel cannot be padded"):
        make()
