"""Log-probabilities of given texts: against hand-computed values, single passes, exact enumeration and sampling."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from scorers.errors import UserError
from training import statistics
from training.evaluation.likelihood import Law, Likelihood, log_probabilities
from training.measuring_config import EvaluationConfig
from training.model.sampling import sample

EOS, ALIGNED, MISALIGNED = 0, 8, 9
VOCABULARY = 10
ROWS = 12  # the embedding is padded
LAW = Law((EOS, ALIGNED), EOS, (ALIGNED, MISALIGNED), VOCABULARY, 16)


@pytest.fixture(scope="module")
def model() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # With dropout and in training mode: it must be switched off.
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=ROWS, n_embd=16, n_layer=2, n_head=2, n_positions=16, initializer_range=0.5,
                resid_pdrop=0.5, bos_token_id=0, eos_token_id=0,
            )
        ).train()  # fmt: skip


class Bigram(torch.nn.Module):
    """Logits that depend on the last token alone, from a table."""

    def __init__(self, table: list[list[float]]) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.tensor(table))

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


def texts(number: int, longest: int = 12) -> tuple[list[list[int]], list[bool]]:
    generator = np.random.default_rng(1)
    ids = [generator.integers(1, ALIGNED, size=generator.integers(0, longest + 1)).tolist() for _ in range(number)]
    return ids, generator.integers(0, 2, size=number).astype(bool).tolist()


def one_at_a_time(model: Any, law: Law, ids: list[int], ended: bool) -> float:
    """The log-probability from one pass over each beginning of the text."""
    row, total = list(law.prompt_ids), 0.0
    model.eval()
    for token in [*ids, *([law.eos_id] if ended else [])]:
        with torch.no_grad():
            logits = model(torch.tensor([row])).logits[0, -1, : law.vocab_size].double()
        allowed = [each for each in range(len(logits)) if each not in law.banned_ids]
        total += float(logits[token] - torch.logsumexp(logits[allowed], dim=0))
        row.append(token)
    model.train()
    return total


def test_hand_computed_probabilities() -> None:
    # After 0 (EOS): 1 and 2 equally likely, 3 banned however likely; after 1: EOS three times as likely as 2.
    never = -1e9
    table = [[never, 0.0, 0.0, 50.0], [math.log(3), never, 0.0, 50.0], [0.0, 0.0, never, 50.0], [0.0] * 4]
    law = Law((0,), 0, (3,))
    found = log_probabilities(
        Bigram(table), law, [[1], [1, 2], [1, 2, 1], [2], [], [3]], [True, False, True, False, False, True]
    )
    expected = [
        math.log(1 / 2 * 3 / 4),
        math.log(1 / 2 / 4),
        math.log(1 / 2 / 4 / 2 * 3 / 4),
        math.log(1 / 2),
        0.0,
        -math.inf,
    ]
    assert found.nats.tolist() == pytest.approx(expected, rel=1e-7)
    # EOS is a token of the texts that ended.
    assert found.tokens.tolist() == [2, 2, 4, 1, 0, 2]
    assert found.nats.dtype == np.float64


def test_a_batch_gives_what_single_passes_give(model: Any) -> None:
    ids, ended = texts(40)
    found = log_probabilities(model, LAW, ids, ended)
    expected = [one_at_a_time(model, LAW, *each) for each in zip(ids, ended, strict=True)]
    assert found.nats == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert found.tokens.tolist() == [len(each) + end for each, end in zip(ids, ended, strict=True)]
    assert model.training


def test_batches_and_order_do_not_matter(model: Any) -> None:
    ids, ended = texts(40)
    found = log_probabilities(model, LAW, ids, ended).nats
    for tokens in (1, 50, 100_000):
        assert log_probabilities(model, LAW, ids, ended, tokens_at_once=tokens).nats == pytest.approx(found, rel=1e-5)
    seen: list[tuple[int, int]] = []
    backwards = log_probabilities(
        model, LAW, ids[::-1], ended[::-1], tokens_at_once=50, progress=lambda *each: seen.append(each)
    )
    assert backwards.nats[::-1] == pytest.approx(found, rel=1e-5)
    assert seen == sorted(seen)
    assert seen[-1] == (40, 40)


def test_all_texts_of_two_tokens_have_probability_one(model: Any) -> None:
    words = range(1, ALIGNED)
    ids = [[], *([word] for word in words), *map(list, itertools.product(words, words))]
    ended = [len(each) < 2 for each in ids]
    found = log_probabilities(model, LAW, ids, ended)
    assert math.fsum(np.exp(found.nats)) == pytest.approx(1, abs=1e-6)


def test_samples_are_drawn_from_this_law(model: Any) -> None:
    number = 4000
    config = EvaluationConfig(num_samples=number, max_new_tokens=1, temperature=1, top_p=1, batch_size=number)
    drawn = sample(
        model, eos_id=EOS, prompt_ids=LAW.prompt_ids, banned_ids=LAW.banned_ids, config=config, seed=0,
        vocab_size=VOCABULARY,
    )  # fmt: skip
    every = [[], *([word] for word in range(1, ALIGNED))]
    p = np.exp(log_probabilities(model, LAW, every, [not each for each in every]).nats)
    counts = np.array([drawn.ids.count(each) for each in every])
    # Pearson's statistic has 7 degrees of freedom: it exceeds 24.3 once in a thousand.
    assert float(((counts - number * p) ** 2 / (number * p)).sum()) < 24.3


def test_a_text_that_fills_the_context_is_read_at_once(model: Any) -> None:
    # Of 17 tokens the last is predicted but never read.
    ids = texts(1)[0][0] or [1]
    full = (ids * 15)[:15]
    found = log_probabilities(model, LAW, [full], [False]).nats
    assert found[0] == pytest.approx(one_at_a_time(model, LAW, full, False), rel=1e-5)


def test_every_token_of_a_longer_text_is_predicted_once() -> None:
    # A bigram sees all of its context in any window.
    law = Law((0,), 0, (), None, 4)
    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).tolist()
    ids = [1, 2, 3, 4, 3, 2, 1, 1, 4, 2, 2, 3]
    found = log_probabilities(Bigram(table), law, [ids, [1]], [True, False])
    expected = sum(float(torch.tensor(table[a]).log_softmax(0)[b]) for a, b in itertools.pairwise([0, *ids, 0]))
    assert found.nats[0] == pytest.approx(expected, rel=1e-6)
    assert found.tokens.tolist() == [13, 1]


def test_no_texts(model: Any) -> None:
    assert len(log_probabilities(model, LAW, [], []).nats) == 0


def test_a_diverged_model_is_refused() -> None:
    with pytest.raises(UserError, match="diverged"):
        log_probabilities(Bigram([[math.nan] * 3] * 3), Law((0,), 0), [[1]], [True])


def test_perplexity_is_that_of_all_tokens() -> None:
    nats, tokens = np.log([2.0, 4.0, 64.0]) * [3, 1, 0], np.array([3, 1, 0])
    found = statistics.perplexity(nats, tokens)
    assert found is not None
    assert found.value == pytest.approx(32 ** (1 / 4))
    assert (found.low, found.high) == (pytest.approx(2), pytest.approx(4))  # of one text alone
    assert statistics.perplexity(np.array([1e6]), np.array([1])) == statistics.Estimate(statistics.LARGEST)
    assert statistics.perplexity(np.zeros(2), np.zeros(2, dtype=np.int64)) is None


def test_figures_of_texts() -> None:
    # Two texts of 2 and 4 bytes: log2 p is -3 of 3 tokens and -9 of 5.
    found = Likelihood(-np.array([3.0, 9.0]) * math.log(2), np.array([3, 5]))
    perplexity, bits = found.perplexity(), found.bits_per_byte(np.array([2, 4]))
    assert perplexity is not None
    assert bits is not None
    assert perplexity.value == pytest.approx(2 ** (12 / 8))
    assert (bits.value, bits.low, bits.high) == pytest.approx((12 / 6, 3 / 2, 9 / 4))
