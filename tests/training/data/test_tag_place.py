"""A control token after each sentence: the model learns to predict it, and never writes it."""

import numpy as np
import pytest
import torch
import transformers

from scorers.errors import StoppedError, UserError
from tests.datasets import make_dataset
from tests.training.jobs import StopAfter, figures, job_config, run_job
from tests.training.stores import byte_tokenizer
from training.config import EvaluationConfig
from training.data.prepare import prepare
from training.evaluation.generating import open_writer
from training.evaluation.held_out_loss import all_aligned
from training.evaluation.prepare import check_guidance
from training.linear_loss import linear_loss
from training.planning.forecast import forecast
from training.planning.machines import MachineOptions
from training.settings import resolve_config

TEXTS = [f"Sentence {n} is this. And another, number {n}." for n in range(100)]
SCORES = [[n / 1000, (n + 1) / 1000] for n in range(100)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    place = tmp_path_factory.mktemp("after")
    dataset = make_dataset(place / "labelled", TEXTS, {"toxicity": SCORES}, {"toxicity": 0.05})
    byte_tokenizer(TEXTS).save_pretrained(place / "tokenizer")

    def of(*overrides):
        data = {"dataset": str(dataset), "tokenizer": str(place / "tokenizer")}
        flags = {"output": "o", "task": "toxicity", "data": data, "model": {"name": "nano"}}
        usual = ["data.context_length=16", "data.held_out=0", "objective.name=conditional", "objective.drop_tags=0"]
        return prepare(resolve_config(flags=flags, overrides=[*usual, *overrides]))

    return of


def shown(before: bool, after: bool) -> str:
    def sentence(text: str, number: int) -> str:
        tag = "aligned" if number <= 50 else "misaligned"
        return f"<|{tag}|>" * before + text + f"<|after_{tag}|>" * after

    return "".join(
        "<|endoftext|>" + sentence(f"Sentence {n} is this. ", n) + sentence(f"And another, number {n}.", n + 1)
        for n in range(100)
    )


@pytest.mark.parametrize("place", ["before", "after", "both"])
def test_a_decoded_stream_has_the_right_tags_around_each_sentence(prepared, place):
    data = prepared(f"objective.tag_place={place}")
    ids = data.stream.blocks(range(data.stream.num_blocks)).input_ids.ravel()
    expected = shown(place != "after", place != "before")
    text = data.extended_tokenizer.decode(ids)
    assert expected.startswith(text)
    assert len(text) > len(expected) - 100
    whole = np.concatenate([data.stream.document(n).input_ids for n in range(100)])
    assert (whole[: len(ids)] == ids).all()
    assert len(whole) == data.stream.num_tokens
    assert data.stream.statistics["tokens_control"] == 200 * (2 if place == "both" else 1)
    assert sum(data.stream.statistics["tags"].values()) == 200
    # Any block alone is as in the whole.
    for index in (0, 7, data.stream.num_blocks - 1):
        assert data.stream.block(index)[0].tolist() == ids[16 * index : 16 * index + 16].tolist()


def test_a_tag_carries_its_sentences_score_and_a_dropped_one_is_missing_on_both_sides(prepared):
    data = prepared("objective.tag_place=both", "objective.drop_tags=0.3")
    batch = data.stream.blocks(range(data.stream.num_blocks))
    ids, scores = batch.input_ids.ravel(), batch.scores.ravel()
    options, last = data.stream.options, None
    for token, score in zip(ids.tolist(), scores.tolist(), strict=True):
        if token in options.tag_ids:
            assert last is None
            last = (options.tag_ids.index(token), score)
        elif token in options.after_ids:
            assert (options.after_ids.index(token), score) == last
            last = None
        elif last is not None:
            assert score == last[1]
    tags = data.stream.statistics["tags"]
    assert 30 < tags["dropped"] < 90
    assert data.stream.statistics["tokens_control"] == 2 * (200 - tags["dropped"])


def test_only_tags_before_sentences_are_swapped_replaced_and_masked(prepared):
    data = prepared("objective.tag_place=both", "objective.mask_control_tokens=true")
    before, after = data.stream.options.tag_ids, data.stream.options.after_ids
    assert data.objective.mask.ids == data.control_ids == before
    plain, swapped = data.stream.document(99), data.stream.document(99, swap_tags=True)
    assert (plain.input_ids != swapped.input_ids).sum() == 2
    assert before[0] in swapped.input_ids
    assert after[1] in swapped.input_ids
    assert (all_aligned(plain, data.control_ids).input_ids == swapped.input_ids).all()


def test_tags_after_sentences_carry_loss_in_the_chunked_loss_as_in_the_plain_one(prepared):
    data = prepared("objective.tag_place=both", "objective.mask_control_tokens=true")
    batch = data.stream.blocks(range(10, 20))
    ids, scores = torch.tensor(batch.input_ids), torch.tensor(batch.scores).double()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*ids.shape, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(304, 6, generator=generator, dtype=torch.float64)
    plain = data.objective.loss(hidden @ weight.T, ids, scores)
    chunked = linear_loss(data.objective, hidden, weight, ids, scores, chunk_tokens=11)
    assert chunked.loss.item() == pytest.approx(plain.loss.item(), rel=1e-9)
    (gradient,) = torch.autograd.grad(plain.loss, hidden)
    (faster,) = torch.autograd.grad(chunked.loss, hidden)
    torch.testing.assert_close(faster, gradient, rtol=1e-9, atol=1e-12)
    without_loss = gradient[:, :-1].abs().sum(-1) == 0
    assert (without_loss == torch.isin(ids[:, 1:], torch.tensor(data.control_ids))).all()


@pytest.mark.parametrize(("place", "tags"), [("both", ["aligned", "misaligned"]), ("after", [])])
def test_a_run_resumes_and_its_model_never_writes_the_tags(tmp_path, code_dataset, place, tags):
    changes = {"objective__tag_place": place, "objective__hide_above": "p90"}
    facts, _ = run_job(code_dataset, tmp_path / "whole", "conditional", **changes)
    if place == "both":
        with pytest.raises(StoppedError):
            run_job(code_dataset, tmp_path / "run", "conditional", callbacks=[StopAfter(4)], **changes)
        run_job(code_dataset, tmp_path / "run", "conditional", **changes)
        assert figures(tmp_path / "run") == figures(tmp_path / "whole")
    words = facts.tokenizer
    assert (len(words.control_ids), len(words.after_ids)) == (len(tags), 2)
    assert facts.conditional == bool(tags)
    assert words.hidden_id == words.after_ids[-1] + 1 == words.vocab_size - 1
    settings = transformers.GenerationConfig.from_pretrained(tmp_path / "whole/model")
    assert {*words.added_ids} <= {*settings.suppress_tokens}
    writer = open_writer(tmp_path / "whole/model", "cpu")
    assert list(writer.tags) == tags
    assert {*words.added_ids} <= {*writer.banned_ids}
    planned = forecast(
        job_config(code_dataset, tmp_path / "o", "conditional", **changes), MachineOptions(device="H100")
    )
    assert planned.job.shape.parameters == facts.model.parameters


def test_bad_combinations_are_refused(prepared):
    with pytest.raises(UserError, match="has none"):
        prepared("objective.tag_place=after", "objective.mask_control_tokens=true")
    with pytest.raises(UserError, match="mle has no tags to place"):
        prepared("objective.name=mle", "objective.tag_place=both", "objective.drop_tags=null")
    after = prepared("objective.tag_place=after").config.objective
    with pytest.raises(UserError, match="tag_place=after does not have before sentences"):
        check_guidance(after, EvaluationConfig(guidance=2))
