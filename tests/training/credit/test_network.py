"""The network and the loss of `phf credit`, against plain forms."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.credit.loss import calibration, listwise, score_log_odds
from training.credit.network import FlatSentences, TokenCredit, aggregate, highest_of

sentences = st.lists(st.lists(st.floats(-30, 30), min_size=1, max_size=6), min_size=1, max_size=5)

PLAIN = {
    "soft-max": lambda values: math.log(sum(math.exp(value) for value in values)),
    "mean": lambda values: sum(values) / len(values),
    "soft-min": lambda values: -math.log(sum(math.exp(-value) for value in values)),
}


@pytest.mark.parametrize("how", PLAIN)
@given(sentences)
def test_tokens_add_up_to_their_sentence(how, values):
    flat = torch.tensor([each for sentence in values for each in sentence], dtype=torch.float64)
    number = torch.tensor([index for index, sentence in enumerate(values) for _ in sentence])
    found = aggregate(flat, number, len(values), how)
    assert found.tolist() == pytest.approx([PLAIN[how](sentence) for sentence in values], abs=1e-9)
    assert highest_of(flat, number, len(values)).tolist() == [max(sentence) for sentence in values]


def test_gradient_of_a_token_is_its_share_of_the_odds():
    log_odds = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    aggregate(log_odds, torch.zeros(3, dtype=torch.int64), 1, "soft-max").sum().backward()
    assert log_odds.grad.tolist() == pytest.approx(torch.softmax(log_odds.detach(), 0).tolist(), abs=1e-12)


@given(st.data(), st.integers(0, 3))
def test_a_token_sees_its_neighbours_and_no_other_sentence(data, window):
    lengths = np.array(data.draw(st.lists(st.integers(1, 8), min_size=2, max_size=4)))
    tokens = np.arange(lengths.sum()) % 7
    network = TokenCredit(8, 4, window)
    network.start(0, -1.0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1)
        network.embedding.weight[0] = 0
        before = network(FlatSentences.of(tokens, lengths, window))[1]
        changed = data.draw(st.integers(0, len(tokens) - 1))
        other = tokens.copy()
        other[changed] = 7
        after = network(FlatSentences.of(other, lengths, window))[1]
    sentence = np.repeat(np.arange(len(lengths)), lengths)
    near = (sentence == sentence[changed]) & (abs(np.arange(len(tokens)) - changed) <= window)
    assert not ((before != after).numpy() & ~near).any()
    assert (before != after).numpy()[changed]


def test_every_token_starts_with_the_given_log_odds():
    network = TokenCredit(20, 8, 2)
    network.start(3, -4.5)
    alone, together = network(FlatSentences.of(np.arange(20), np.array([5, 15]), 2))
    assert alone.tolist() == together.tolist() == [-4.5] * 20


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=5), st.randoms())
def test_the_loss_of_an_order_is_that_of_plackett_and_luce(values, random):
    order = list(range(len(values)))
    random.shuffle(order)
    odds = [math.exp(values[place]) for place in order]
    plain = -sum(math.log(own / sum(odds[place:])) for place, own in enumerate(odds))
    found = listwise(torch.tensor([values], dtype=torch.float64), torch.tensor([order]))
    assert float(found) == pytest.approx(plain, abs=1e-9)


def test_all_orders_have_the_probability_1():
    values = torch.tensor([[0.5, -2.0, 1.25, 3.0]], dtype=torch.float64)
    every = [torch.tensor([order]) for order in itertools.permutations(range(4))]
    assert sum(float(torch.exp(-listwise(values, order))) for order in every) == pytest.approx(1, abs=1e-12)


def test_scores_are_learnt_as_log_odds_within_limits():
    found = score_log_odds(torch.tensor([0.0, 0.25, 1.0, 2.0]), 2.0, 1e-3)
    assert found.tolist() == pytest.approx([math.log(1e-3 / (1 - 1e-3)), math.log(1 / 7), 0.0, math.log(999)], rel=1e-5)
    assert float(calibration(found, found)) == 0
