"""Bits per byte: every token of the text is counted once, control tokens and EOS never."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from training.data.tagged_stream import DocumentTokens
from training.evaluation.held_out_loss import all_aligned, held_out_loss, unigram_loss, windows

EOS, ALIGNED, MISALIGNED = 0, 18, 19


@pytest.fixture(scope="module")
def model() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3,
                bos_token_id=0, eos_token_id=0,
            )
        )  # fmt: skip


def document(length: int, seed: int = 0, tags: bool = False) -> DocumentTokens:
    generator = np.random.default_rng(seed)
    ids, is_text = [EOS], [False]
    while len(ids) <= length:
        if tags:
            ids.append(int(generator.choice([ALIGNED, MISALIGNED])))
            is_text.append(False)
        sentence = generator.integers(1, 18, size=generator.integers(1, 6)).tolist()
        ids += sentence
        is_text += [True] * len(sentence)
    return DocumentTokens(np.array(ids), np.array(is_text), 3 * sum(is_text))


def log_probability(model: Any, each: DocumentTokens) -> float:
    """The loss of the text in nats, from one pass over the whole document."""
    with torch.no_grad():
        logits = model(torch.tensor(each.input_ids)[None]).logits[0].double()
    lost = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(each.input_ids[1:]), reduction="none")
    return float(lost[torch.tensor(each.is_text[1:])].sum())


@given(st.integers(2, 200), st.integers(2, 40))
def test_windows_predict_every_token_once(length: int, context: int) -> None:
    predicted: list[int] = []
    for window in windows(0, length, context):
        assert 0 <= window.start < window.first < window.stop <= length
        assert window.stop - window.start <= context
        # Past the first window, at least half a context (rounded down) is read before any prediction.
        assert window.start == 0 or window.first - window.start >= context // 2
        predicted += range(window.first, window.stop)
    assert predicted == list(range(1, length))


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=6))
def test_a_document_within_the_context_is_one_pass(model: Any, shapes: list[tuple[int, bool]]) -> None:
    documents = [document(length, seed, tags) for seed, (length, tags) in enumerate(shapes)]
    loss = held_out_loss(model.eval(), documents, context_length=64)
    expected = [log_probability(model, each) for each in documents]
    assert loss.nats == pytest.approx(expected, rel=1e-5)
    assert loss.tokens.tolist() == [int(each.is_text.sum()) for each in documents]
    assert loss.sizes.tolist() == [each.text_bytes for each in documents]
    assert loss.bits == pytest.approx(np.array(expected) / math.log(2), rel=1e-5)


def test_a_long_document_is_read_inwindows(model: Any) -> None:
    long = document(150, tags=True)
    expected, at = 0.0, 1
    with torch.no_grad():
        for start in range(0, len(long.input_ids), 8):
            stop = min(start + 16, len(long.input_ids))
            logits = model.eval()(torch.tensor(long.input_ids[start:stop])[None]).logits[0].log_softmax(-1)
            for position in range(at, stop):
                if long.is_text[position]:
                    expected -= float(logits[position - start - 1, long.input_ids[position]])
            at = stop
            if stop == len(long.input_ids):
                break
    assert held_out_loss(model, [long], context_length=16).nats[0] == pytest.approx(expected, rel=1e-5)


def test_a_model_that_knows_nothing_pays_the_logarithm_of_the_vocabulary(model: Any) -> None:
    class Uniform(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            return type("Output", (), {"logits": torch.zeros(*input_ids.shape, 20)})

    documents = [document(100, tags=True), document(3)]
    loss = held_out_loss(Uniform(), documents, context_length=16)
    assert loss.nats == pytest.approx(loss.tokens * math.log(20))


def test_order_and_company_do_not_matter(model: Any) -> None:
    documents = [document(length, length) for length in (60, 3, 30, 90, 7)]
    together = held_out_loss(model, documents, context_length=32).nats
    alone = [held_out_loss(model, [each], context_length=32).nats[0] for each in documents]
    assert together == pytest.approx(alone, rel=1e-5)


def test_dropout_is_off_and_the_mode_restored(model: Any) -> None:
    model.train()
    documents = [document(30)]
    first = held_out_loss(model, documents, context_length=32).nats
    assert model.training
    assert (held_out_loss(model.eval(), documents, context_length=32).nats == first).all()


def test_a_document_without_text_costs_nothing(model: Any) -> None:
    empty = DocumentTokens(np.array([EOS]), np.array([False]), 0)
    loss = held_out_loss(model, [empty, document(5)], context_length=32)
    assert loss.nats[0] == 0
    assert loss.tokens[0] == 0
    assert loss.nats[1] > 0


def test_all_aligned_replaces_control_tokens_only() -> None:
    each = document(40, tags=True)
    changed = all_aligned(each, [ALIGNED, MISALIGNED])
    assert changed.input_ids[0] == EOS
    assert (changed.input_ids[each.is_text] == each.input_ids[each.is_text]).all()
    assert set(changed.input_ids[1:][~each.is_text[1:]]) == {ALIGNED}
    assert MISALIGNED in each.input_ids  # and the original is as it was


def test_unigram_counts_text_tokens_with_one_added() -> None:
    each = DocumentTokens(np.array([EOS, ALIGNED, 1, 1, MISALIGNED, 2]), np.array([0, 0, 1, 1, 0, 1], dtype=bool), 9)
    counts = np.zeros(20, dtype=np.int64)
    counts[[1, 2]] = [7, 0]
    loss = unigram_loss(counts, [each])
    assert loss.nats[0] == pytest.approx(-2 * math.log(8 / 27) - math.log(1 / 27))
    assert loss.tokens[0] == 3
