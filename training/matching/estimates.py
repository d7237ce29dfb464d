"""Estimates from samples of a proposal q: the normaliser Z, divergences, and how many samples they are worth.

Samples are equally weighted; with `weights` q(x) over all x, every estimate is exact. Formulas: arXiv 2012.11635,
section 3, and arXiv 2112.00791 for one normaliser per context. To each term of a KL we add the difference of two
ratios to q, whose means are both 1: then no term is negative, and they vary less.
"""

from dataclasses import dataclass

import numpy as np

from training.matching.constraints import Floats


@dataclass(frozen=True)
class SampleLogs:
    """What is known of samples x ~ q; all float64 [n].

    Attributes:
        prior: log a, under the model before.
        target: log P, unnormalised; -inf outside of the target.
        proposal: log q.
        model: log pi, under the model that is trained.
    """

    prior: Floats
    target: Floats
    proposal: Floats
    model: Floats

    def log_p(self, log_z: Floats | float) -> Floats:
        """Return log p = log P - log Z; -inf where `log_z`, of all samples or of each, is -inf."""
        known = np.broadcast_to(log_z, self.target.shape) > -np.inf
        return np.where(known, self.target - np.where(known, log_z, 0.0), -np.inf)


def log_normalisers(samples: SampleLogs, per_context: int | None = None) -> Floats:
    """Return log Z of each sample's context, float64 [n]: the mean of P/q over the samples of the context.

    Args:
        samples: those of a context follow each other.
        per_context: number of samples of each context; None for one context.

    Returns:
        -inf where no sample of the context is in the target.
    """
    ratios = (samples.target - samples.proposal).reshape(-1, per_context or len(samples.target))
    return np.repeat(log_mean(ratios), ratios.shape[1])


def log_mean(values: Floats, weights: Floats | None = None) -> Floats:
    """Return the log of the (weighted) mean of exp over the last axis; -inf if all values are."""
    largest = np.max(values, axis=-1, keepdims=True, initial=-np.inf)
    shift = np.where(np.isneginf(largest), 0.0, largest)
    with np.errstate(divide="ignore"):
        means: Floats = np.log(_mean(np.exp(values - shift), weights)) + shift[..., 0]
    return means


def kl_from_target(
    samples: SampleLogs, log_model: Floats, log_z: Floats | float, weights: Floats | None = None
) -> float:
    """Return KL(p || model) = E_q[p/q (log p - log model) - p/q + model/q], where p = P/Z.

    Args:
        samples: the samples.
        log_model: float64 [n], of any model, such as `samples.model` or `samples.proposal`.
        log_z: of all samples or of each; samples of a context with -inf count 0.
        weights: float64 [n], of the samples; None for 1/n.
    """
    log_p = samples.log_p(log_z)
    inside = log_p > -np.inf
    change = np.where(inside, log_p, 0.0) - np.where(inside, log_model, 0.0)
    terms = np.exp(log_p - samples.proposal) * (change - 1) + np.exp(log_model - samples.proposal)
    known = np.broadcast_to(log_z, log_p.shape) > -np.inf
    return float(_mean(np.where(known, terms, 0.0), weights))


def total_variation(
    samples: SampleLogs, log_model: Floats, log_z: Floats | float, weights: Floats | None = None
) -> float:
    """Return TVD(p, model) = E_q |model/q - P/(Z q)| / 2; the arguments are those of `kl_from_target`."""
    ratios = np.exp(log_model - samples.proposal) - np.exp(samples.log_p(log_z) - samples.proposal)
    return float(_mean(np.abs(ratios), weights)) / 2


def kl_from_prior(samples: SampleLogs, weights: Floats | None = None) -> float:
    """Return KL(pi || a) = E_q[pi/q (log pi - log a) - pi/q + a/q], the price of the targets."""
    ratios = np.exp(samples.model - samples.proposal)
    terms = ratios * (samples.model - samples.prior - 1) + np.exp(samples.prior - samples.proposal)
    return float(_mean(terms, weights))


def effective_size(log_weights: Floats) -> float:
    """Return (sum w)^2 / sum w^2: how many equally weighted samples have the same variance; 0 if all weights are 0."""
    largest = np.max(log_weights, initial=-np.inf)
    if largest == -np.inf:
        return 0.0
    weights = np.exp(log_weights - largest)
    return float(weights.sum() ** 2 / (weights**2).sum())


def _mean(values: Floats, weights: Floats | None) -> Floats:
    return np.asarray(values.mean(axis=-1) if weights is None else (values * weights).sum(axis=-1))
