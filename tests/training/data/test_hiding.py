"""Tokens to forget: `<|hidden|>` stands in their place in the input, and carries no loss."""

import json

import numpy as np
import pytest
import torch
import transformers

from scorers.errors import StoppedError, UserError
from tests.datasets import make_dataset
from tests.training.jobs import StopAfter, figures, job_config, run_job
from tests.training.stores import byte_tokenizer
from training.data.prepare import prepare
from training.evaluation.checks import main_data
from training.evaluation.generating import open_writer
from training.linear_loss import linear_loss
from training.planning.forecast import forecast
from training.planning.machines import MachineOptions
from training.settings import resolve_config

TEXTS = [f"Note {n} on the weather. It rained on day {n}." for n in range(80)]
SCORES = [[n / 100, n / 200] for n in range(80)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    place = tmp_path_factory.mktemp("hidden")
    dataset = make_dataset(place / "labelled", TEXTS, {"toxicity": SCORES}, {"toxicity": 0.2})
    byte_tokenizer(TEXTS).save_pretrained(place / "tokenizer")
    other = make_dataset(place / "other", TEXTS[:50], {"toxicity": SCORES[:50]}, {"toxicity": 0.2})

    def of(objective, *overrides, mixture=False):
        data = {"dataset": str(dataset), "tokenizer": str(place / "tokenizer")}
        flags = {"output": "o", "task": "toxicity", "data": data, "model": {"name": "nano"}}
        usual = ["data.context_length=16", "data.held_out=0.1", f"objective.name={objective}"]
        if mixture:
            usual += [f"data.mixture={json.dumps([{'dataset': str(other), 'share': 0.4}])}"]
            usual += ["data.allow_mixed_scorers=true"]
        return prepare(resolve_config(flags=flags, overrides=[*usual, *overrides]))

    return of


HIDE = "objective.hide_above=0.3"


@pytest.mark.parametrize("objective", ["mle", "conditional"])
def test_only_text_above_the_limit_is_replaced(prepared, objective):
    plain, data = prepared(objective), prepared(objective, HIDE)
    every = range(plain.stream.num_blocks)
    before, after = plain.stream.blocks(every), data.stream.blocks(every)
    hidden = data.stream.options.hidden_id
    text = ~np.isin(before.input_ids, [plain.tokenizer.eos_id, *plain.control_ids])
    above = text & (before.scores > np.float32(0.3))
    assert 0 < above.sum() < text.sum()
    assert (after.input_ids == np.where(above, hidden, before.input_ids)).all()
    assert (after.scores == before.scores).all()
    # Counted over the whole stream, which is less than a block longer.
    assert above.sum() <= data.stream.statistics["tokens_hidden"] <= above.sum() + 16
    assert hidden == (302 if objective == "conditional" else 300) == data.added_ids[-1]
    assert data.tokenizer.with_control_tokens(len(data.control_ids), hidden=True).decode([hidden]) == "<|hidden|>"


def test_batches_are_a_function_of_the_step_and_shared_by_a_mixture(prepared):
    data = prepared("mle", HIDE, "training.batch_size=8", mixture=True)
    whole = data.batches.batch(3)
    parts = [data.batches.rank_batch(3, rank, 4) for rank in range(4)]
    assert (np.concatenate([part.input_ids for part in parts]) == whole.input_ids).all()
    assert {each.streams[0].options.hidden_id for each in data.datasets} == {300}
    assert all(each.streams[0].statistics["tokens_hidden"] for each in data.datasets)


def test_hidden_tokens_carry_no_loss_in_the_chunked_loss_as_in_the_plain_one(prepared):
    data = prepared("rwr", HIDE, "objective.beta=0.5")
    batch = data.stream.blocks(range(40, 60))
    ids, scores = torch.tensor(batch.input_ids), torch.tensor(batch.scores).double()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*ids.shape, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(301, 6, generator=generator, dtype=torch.float64)
    plain = data.objective.loss(hidden @ weight.T, ids, scores)
    chunked = linear_loss(data.objective, hidden, weight, ids, scores, chunk_tokens=11)
    assert chunked.loss.item() == pytest.approx(plain.loss.item(), rel=1e-9)
    (gradient,) = torch.autograd.grad(plain.loss, hidden)
    (faster,) = torch.autograd.grad(chunked.loss, hidden)
    torch.testing.assert_close(faster, gradient, rtol=1e-9, atol=1e-12)
    without_loss = gradient[:, :-1].abs().sum(-1) == 0
    assert (without_loss == (ids[:, 1:] == 300)).all()
    assert plain.metrics["masked_share"].item() == pytest.approx(without_loss.double().mean().item())


def test_a_percentile_is_resolved_and_an_evaluation_reads_the_whole_text(prepared):
    data = prepared("mle", "objective.hide_above=p90")
    assert data.config.objective.hide_above == data.stream.options.hide_above
    kept, sentences = data.stream.count_aligned(data.config.objective.hide_above)
    assert 0.9 <= kept / sentences < 0.95
    again = prepare(main_data(data.config, None), compare_texts=False)
    assert again.added_ids == data.added_ids
    worst = int(np.argmax(again.store.document_means("toxicity")))
    assert 300 not in again.stream.document(worst).input_ids


def test_in_a_plain_phase_nothing_is_hidden(prepared):
    data = prepared("mle", HIDE, "objective.starts_at=0.5", "training.num_tokens=10000", "training.batch_size=4")
    first, second = data.datasets[0].streams
    assert 300 not in first.blocks(range(first.num_blocks)).input_ids
    assert 300 in second.blocks(range(second.num_blocks)).input_ids


def test_a_run_hides_resumes_and_never_writes_the_token(tmp_path, code_dataset):
    changes = {"objective__hide_above": "p85"}
    facts, printed = run_job(code_dataset, tmp_path / "whole", "conditional", **changes)
    with pytest.raises(StoppedError):
        run_job(code_dataset, tmp_path / "run", "conditional", callbacks=[StopAfter(4)], **changes)
    run_job(code_dataset, tmp_path / "run", "conditional", **changes)
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")
    hidden = facts.tokenizer.hidden_id
    assert hidden not in facts.tokenizer.control_ids
    assert facts.tokenizer.vocab_size == hidden + 1
    assert f"of them {facts.stream['tokens_hidden']:,} hidden" in printed
    settings = transformers.GenerationConfig.from_pretrained(tmp_path / "run/model")
    assert hidden in settings.suppress_tokens
    writer = open_writer(tmp_path / "run/model", "cpu")
    assert list(writer.tags) == ["aligned", "misaligned"]
    assert hidden in writer.banned_ids
    config = job_config(code_dataset, tmp_path / "run", "conditional", **changes)
    planned = forecast(config, MachineOptions(device="H100"))
    assert planned.job.shape.parameters == facts.model.parameters


@pytest.mark.parametrize(
    ("objective", "overrides", "message"),
    [
        ("mle", ["objective.hide_above=9"], r"hide_above=9\.0 hides no sentence of the stream\. Its scores: p50"),
        ("mle", ["objective.hide_above=-1"], "hides every sentence"),
        ("unlikelihood", ["objective.hide_above=0.1", "objective.alpha=1"], "hides every token.*would push down"),
        ("mle", [HIDE, "objective.mask_above=0.3"], "hides every token that objective.mask_above=0.3"),
        ("target", [HIDE, "objective.targets={toxicity: 0.1}"], "would not know"),
        ("mle", ["objective.hide_above=p100"], "hide_above"),
    ],
)
def test_what_hides_nothing_or_too_much_is_refused(prepared, objective, overrides, message):
    with pytest.raises(UserError, match=message):
        prepared(objective, *overrides)
