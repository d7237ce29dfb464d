"""The algorithm of distribution matching, apart from models and text: from log-probabilities to weights of samples.

KL-adaptive distributional policy gradients (algorithm 2 of arXiv 2012.11635), with the baseline of GDC++ (arXiv
2206.00761), other divergences (arXiv 2302.08215) and one normaliser per context for prompts (arXiv 2112.00791).
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from training.matching.constraints import Floats
from training.matching.divergence import Divergence, sample_weights
from training.matching.estimates import (
    SampleLogs,
    effective_size,
    kl_from_prior,
    kl_from_target,
    log_mean,
    log_normalisers,
    total_variation,
)

_WINDOW = 1024  # samples over which a baseline is averaged


@dataclass(frozen=True)
class Figures:
    """Estimates at a check; see `training.matching.estimates`.

    Attributes:
        z: the normaliser of the target, over all samples so far; with contexts, the mean over those of this check.
        kl_target, kl_target_proposal: KL(p || pi) and KL(p || q).
        tvd, tvd_proposal: the total variation between p and pi, and between p and q.
        kl_prior: KL(pi || a).
        effective: share of the check's samples that they are worth as samples of p.
        acceptance: share of the samples, weighted as of pi, that are in the target.
    """

    z: float
    kl_target: float
    kl_target_proposal: float
    tvd: float
    tvd_proposal: float
    kl_prior: float
    effective: float
    acceptance: float


class Matcher:
    """Weighs samples, and keeps what its weights depend on besides them: Z and the baseline.

    Args:
        divergence: the divergence to lower.
        per_context: samples of each context, which follow each other; None without contexts.
        log_z: without contexts, log Z by the first samples of the prior.
        samples: the number of these samples.
    """

    def __init__(self, divergence: Divergence, per_context: int | None, log_z: float, samples: int) -> None:
        self._divergence, self._per_context = divergence, per_context
        self._z, self._samples = np.exp(log_z) * samples, samples
        self._recent = np.empty(0)

    def weigh(self, samples: SampleLogs) -> Floats:
        """Return the weight of grad log pi of each sample, float64 [n], and learn from the samples for later steps."""
        weights, derivative = sample_weights(self._divergence, samples, self._log_z(samples), self._baseline)
        # The estimates of this step must not depend on its samples: so these count from the next one on.
        self._learn(samples)
        if self._divergence.exact_mean is None:
            self._recent = np.concatenate([self._recent, derivative[~np.isnan(derivative)]])[-_WINDOW:]
        return weights

    def measure(self, samples: SampleLogs) -> Figures:
        """Return estimates from samples of the proposal that no step has used."""
        self._learn(samples)
        log_z = self._log_z(samples)
        ratios = np.exp(samples.model - samples.proposal)
        return Figures(
            z=float(np.exp(log_z).mean()),
            kl_target=kl_from_target(samples, samples.model, log_z),
            kl_target_proposal=kl_from_target(samples, samples.proposal, log_z),
            tvd=total_variation(samples, samples.model, log_z),
            tvd_proposal=total_variation(samples, samples.proposal, log_z),
            kl_prior=kl_from_prior(samples),
            effective=effective_size(samples.log_p(log_z) - samples.proposal) / len(samples.target),
            acceptance=float((ratios * (samples.target > -np.inf)).sum() / ratios.sum()),
        )

    def state(self) -> dict[str, Any]:
        """Return what `load` needs, as plain values."""
        return {"z": float(self._z), "samples": self._samples, "recent": self._recent.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self._z, self._samples = float(state["z"]), int(state["samples"])
        self._recent = np.array(state["recent"], dtype=np.float64)

    @property
    def _baseline(self) -> float:
        if self._divergence.exact_mean is not None:
            return self._divergence.exact_mean
        return float(self._recent.mean()) if len(self._recent) else self._divergence.at_target

    def _log_z(self, samples: SampleLogs) -> Floats:
        if self._per_context is not None:
            return log_normalisers(samples, self._per_context)
        return np.full(len(samples.target), np.log(self._z / self._samples))

    def _learn(self, samples: SampleLogs) -> None:
        """Average Z over all samples so far, whatever their proposal: each batch estimates the same Z."""
        if self._per_context is None:
            self._z += float(np.exp(log_mean(samples.target - samples.proposal))) * len(samples.target)
            self._samples += len(samples.target)


def is_better(figures: Figures, by: Literal["kl", "tvd"]) -> bool:
    """Whether the model is closer to the target than the proposal, which it then replaces."""
    if by == "kl":
        return figures.kl_target < figures.kl_target_proposal
    return figures.tvd < figures.tvd_proposal


def moments(samples: SampleLogs, features: Floats) -> list[float]:
    """Return the means of features under the model, by self-normalised importance weights.

    Args:
        samples: of a proposal.
        features: float64 [n, k]; samples without scores (NaN) are left out.
    """
    scored = ~np.isnan(features).any(axis=1)
    weights = np.where(scored, np.exp(samples.model - samples.proposal), 0.0)
    means: list[float] = (weights @ np.nan_to_num(features) / max(weights.sum(), np.finfo(float).tiny)).tolist()
    return means
