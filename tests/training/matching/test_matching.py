"""Distribution matching on an alphabet that is enumerated: the target, the gradients, the estimates, the optimum."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from scorers.errors import UserError
from tests.training.matching.alphabet import MEAN, SEQUENCES, WORST, Tables, numbers
from training.matching import estimates
from training.matching.constraints import Constraint, SampleScores, feature_matrix, parse_constraints
from training.matching.divergence import DIVERGENCES, sample_weights
from training.matching.energy import EnergyModel, fit
from training.matching.estimates import SampleLogs
from training.matching.matcher import Matcher, is_better

SCORES = {"style": SampleScores(WORST, MEAN)}
HYBRID = parse_constraints(["style<=0.6: 1", "style<=0.4: 0.8", "style: 0.15"])
SOFT = parse_constraints(["style<=0.4: 0.8"])


def target_of(prior: np.ndarray, texts: tuple[Constraint, ...]) -> tuple[EnergyModel, np.ndarray]:
    """The energy model whose moments hold over all sequences, and its normalised distribution."""
    from training.lambdas import solve_lambdas

    features = feature_matrix(texts, SCORES)
    inside = np.all([features[:, at] == 1 for at, each in enumerate(texts) if each.pointwise] or [MEAN >= 0], axis=0)
    finite = [at for at, each in enumerate(texts) if not each.pointwise]
    lambdas = np.zeros(len(texts))
    wanted = [texts[at].moment for at in finite]
    lambdas[finite] = solve_lambdas(features[:, finite], wanted, np.where(inside, prior, -np.inf)).values
    model = EnergyModel(texts, tuple(lambdas))
    unnormalised = np.exp(prior + model.log_factor(features))
    return model, unnormalised / unnormalised.sum()


def logs(prior: Tables, proposal: Tables, model: Tables, energy: EnergyModel) -> SampleLogs:
    a = numbers(prior)
    return SampleLogs(
        a, a + energy.log_factor(feature_matrix(energy.constraints, SCORES)), numbers(proposal), numbers(model)
    )


def exact_divergence(name: str, model: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """D_f(pi || p) in its plain form, of log pi and p."""
    pi, inside = model.exp(), p > 0
    if name == "kl":
        return (p[inside] * (p[inside].log() - model[inside])).sum()
    if name == "reverse-kl":
        return (pi * (model - p.log())).sum()
    if name == "tv":
        return (pi - p).abs().sum() / 2
    middle = (pi + p) / 2  # twice the Jensen-Shannon divergence
    return (pi * (model - middle.log())).sum() + (p[inside] * (p[inside].log() - middle[inside].log())).sum()


def test_the_target_has_the_wanted_moments():
    prior = Tables(0)
    _, p = target_of(numbers(prior), HYBRID)
    features = feature_matrix(HYBRID, SCORES)
    assert p @ features == pytest.approx([1, 0.8, 0.15], abs=1e-9)
    # Of all distributions with these moments it is the closest: log p - log a is a combination of the features.
    inside = p > 0
    system = np.column_stack([np.ones(inside.sum()), features[inside]])
    change = np.log(p[inside]) - numbers(prior)[inside]
    combination = np.linalg.lstsq(system, change, rcond=None)[0]
    assert system @ combination == pytest.approx(change, abs=1e-9)


def test_lambdas_of_drawn_samples_approach_the_exact_ones():
    prior = Tables(0)
    exact, _ = target_of(numbers(prior), HYBRID)
    drawn = np.random.default_rng(0).choice(len(SEQUENCES), 200_000, p=np.exp(numbers(prior)))
    found = fit(HYBRID, feature_matrix(HYBRID, SCORES)[drawn])
    assert found.lambdas == pytest.approx(exact.lambdas, abs=0.1)


def test_estimates_are_exact_on_the_whole_space():
    prior, proposal, model = Tables(0), Tables(1), Tables(2)
    energy, p = target_of(numbers(prior), HYBRID)
    samples = logs(prior, proposal, model, energy)
    q, pi, inside = np.exp(samples.proposal), np.exp(samples.model), p > 0
    z = np.exp(samples.target).sum()
    log_z = float(estimates.log_mean(samples.target - samples.proposal, q))
    assert np.exp(log_z) == pytest.approx(z, abs=1e-9)
    for log_model in (samples.model, samples.proposal):
        kl = (p[inside] * (np.log(p[inside]) - log_model[inside])).sum()
        assert estimates.kl_from_target(samples, log_model, log_z, q) == pytest.approx(kl, abs=1e-9)
        tvd = np.abs(p - np.exp(log_model)).sum() / 2
        assert estimates.total_variation(samples, log_model, log_z, q) == pytest.approx(tvd, abs=1e-9)
    price = (pi * (samples.model - samples.prior)).sum()
    assert estimates.kl_from_prior(samples, q) == pytest.approx(price, abs=1e-9)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_weights_give_the_gradient_of_the_exact_divergence(name):
    constraints = SOFT if name == "reverse-kl" else HYBRID
    prior, proposal, model = Tables(0), Tables(1), Tables(2)
    energy, p = target_of(numbers(prior), constraints)
    samples = logs(prior, proposal, model, energy)
    q = torch.from_numpy(np.exp(samples.proposal))
    log_z = float(np.log(np.exp(samples.target).sum()))
    exact = torch.autograd.grad(
        exact_divergence(name, model.log_probabilities(), torch.from_numpy(p)), list(model.parameters())
    )
    for baseline in (-1.0, 0.3):  # a constant changes only the variance
        weights, _ = sample_weights(DIVERGENCES[name], samples, log_z, baseline)
        surrogate = -(q * torch.from_numpy(weights) * model.log_probabilities()).sum()
        found = torch.autograd.grad(surrogate, list(model.parameters()))
        for one, other in zip(found, exact, strict=True):
            torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


def test_reverse_kl_is_reinforce_with_a_kl_penalty():
    # arXiv 2206.00761, theorem 1: E_pi[r] - beta KL(pi || a) = -beta KL(pi || p) + const., p = a exp(r / beta) / Z.
    prior, model, beta = Tables(0), Tables(2), 0.05
    constraint = Constraint("style", None, 0.1)
    energy = EnergyModel((constraint,), (-1 / beta,))
    samples = replace(logs(prior, model, model, energy))
    objective = model.log_probabilities()
    value = (objective.exp() * (torch.from_numpy(-MEAN) - beta * (objective - torch.from_numpy(samples.prior)))).sum()
    exact = torch.autograd.grad(value, list(model.parameters()))
    weights, _ = sample_weights(DIVERGENCES["reverse-kl"], samples, 0.0, 0.7)
    pi = objective.detach().exp()
    surrogate = (pi * torch.from_numpy(beta * weights) * model.log_probabilities()).sum()
    for one, other in zip(torch.autograd.grad(surrogate, list(model.parameters())), exact, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_sample_outside_of_the_target_is_pushed_away_by_a_finite_weight(name):
    samples = SampleLogs(np.zeros(2), np.array([0.0, -np.inf]), np.zeros(2), np.zeros(2))
    weights, _ = sample_weights(DIVERGENCES[name], samples, 0.0, DIVERGENCES[name].at_target)
    assert np.isfinite(weights).all()
    assert weights[1] < weights[0] == 0


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_loop_reaches_the_target(name):
    constraints = SOFT if name == "reverse-kl" else HYBRID
    prior = Tables(0)
    energy, p = target_of(numbers(prior), constraints)
    proposal, model = copy.deepcopy(prior), copy.deepcopy(prior)
    generator = np.random.default_rng(3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)

    def draw(number: int) -> tuple[np.ndarray, SampleLogs]:
        drawn = generator.choice(len(SEQUENCES), number, p=np.exp(numbers(proposal)))
        every = logs(prior, proposal, model, energy)
        return drawn, SampleLogs(every.prior[drawn], every.target[drawn], every.proposal[drawn], every.model[drawn])

    _, first = draw(4096)
    matcher = Matcher(DIVERGENCES[name], None, float(estimates.log_mean(first.target - first.prior)), 4096)
    replaced = 0
    for step in range(400):
        drawn, samples = draw(256)
        weights = torch.from_numpy(matcher.weigh(samples))
        optimizer.zero_grad()
        (-(weights * model.log_probabilities(SEQUENCES[drawn])).mean()).backward()
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / 400)
        optimizer.step()
        if step % 20 == 19 and is_better(matcher.measure(draw(2048)[1]), "kl"):
            proposal, replaced = copy.deepcopy(model), replaced + 1
    before, after = (np.abs(p - np.exp(numbers(each))).sum() / 2 for each in (prior, model))
    assert replaced
    assert after < before / 5, (before, after)
    moments = np.exp(numbers(model)) @ feature_matrix(constraints, SCORES)
    assert moments == pytest.approx([each.moment for each in constraints], abs=0.03)


def test_contexts_have_their_own_normaliser_and_none_where_nothing_is_in_the_target():
    # Two contexts of four samples: in the second nothing is in the target, so it must move nothing.
    log_q = np.log(np.full(8, 0.25))
    target = np.array([np.log(0.25), -np.inf, np.log(0.25), -np.inf, *[-np.inf] * 4])
    samples = SampleLogs(log_q, target, log_q, log_q)
    matcher = Matcher(DIVERGENCES["kl"], 4, 0.0, 1)
    assert matcher.weigh(samples).tolist() == [1, -1, 1, -1, 0, 0, 0, 0]
    figures = matcher.measure(samples)
    assert figures.z == 0.25
    assert figures.acceptance == 0.25
    assert np.isfinite([figures.kl_target, figures.tvd]).all()


def test_state_continues_as_if_never_stopped():
    prior, model = Tables(0), Tables(2)
    energy, _ = target_of(numbers(prior), SOFT)
    samples = logs(prior, prior, model, energy)
    one = Matcher(DIVERGENCES["js"], None, -0.5, 100)
    one.weigh(samples)
    other = Matcher(DIVERGENCES["js"], None, 0.0, 1)
    other.load(one.state())
    assert np.array_equal(one.weigh(samples), other.weigh(samples))
    assert one.measure(samples) == other.measure(samples)


def test_thresholds_are_compared_as_scores_are_stored():
    score = np.array([np.float32(0.1)], dtype=np.float64)
    assert score[0] > 0.1
    assert Constraint.parse("a<=0.1: 1").feature({"a": SampleScores(score, score)}).tolist() == [1]


def test_samples_that_cannot_be_scored_are_outside_of_the_target():
    features = np.array([[1.0, 0.2], [0.0, 0.2], [np.nan, np.nan]])
    energy = EnergyModel(parse_constraints(["a<=0: 1", "b: 0.1"]), (0.0, -2.0))
    assert energy.log_factor(features).tolist() == [-0.4, -np.inf, -np.inf]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no constraint"),
        (["toxicity<=x: 1"], "threshold 'x' is not a number"),
        (["toxicity"], "not of the form"),
        (["toxicity<=0.1: 1.5"], "at most 1"),
        (["toxicity<=0.1: 0"], "above 0"),
        (["toxicity: nan"], "mean 'nan' is not a number"),
        (["toxicity: 0"], "toxicity<=0: 1"),
        (["toxicity<=0.1: 0.5", "toxicity <= 0.1 : 0.7"], "about the same"),
        (["toxicity<=0.1: 0.9", "toxicity<=0.2: 0.5"], "contradict each other"),
    ],
)
def test_refuses_constraints_that_mean_nothing(texts, message):
    with pytest.raises(UserError, match=message):
        parse_constraints(texts)


def test_says_what_samples_cannot_give():
    features = np.repeat(np.array([[1.0, 0.0], [0.0, 0.0]]), 100, axis=0)
    with pytest.raises(UserError, match="'b<=0: 1': none of 200 samples"):
        fit(parse_constraints(["a<=0: 0.9", "b<=0: 1"]), features)
    with pytest.raises(UserError, match=r"'b<=0: 0\.5': none of 200 samples"):
        fit(parse_constraints(["a<=0: 0.9", "b<=0: 0.5"]), features)
    with pytest.raises(UserError, match="each of 200 samples"):
        fit(parse_constraints(["a<=0: 0.5"]), np.ones((200, 1)))
    with pytest.raises(UserError, match="values from 0 to 1; a mean must lie"):
        fit(parse_constraints(["a: 2"]), features[:, :1])
    opposite = np.column_stack([features[:, 0], 1 - features[:, 0]])
    with pytest.raises(UserError, match="contradict each other on samples"):
        fit(parse_constraints(["a<=0: 0.9", "b<=0: 0.9"]), opposite)
    with pytest.raises(UserError, match="at least 50 are needed"):
        fit(parse_constraints(["a<=0: 1"]), np.repeat([[1.0], [0.0]], [30, 170], axis=0))
    with pytest.raises(UserError, match="effective sample size"):
        fit(parse_constraints(["a<=0: 0.99"]), np.repeat([[1.0], [0.0]], [10, 190], axis=0))
