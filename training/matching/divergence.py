"""Divergences D_f(pi || p) = E_p f(u) with u = pi/p, and the weight that each gives to log pi of a sample.

grad D_f = E_{x~pi}[f'(u) grad log pi], and E_{x~pi}[grad log pi] = 0, so any constant may be taken from f'(u) to lower
the variance (Go et al., arXiv 2302.08215; for the forward KL the baseline of GDC++, arXiv 2206.00761).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training.matching.constraints import Floats
from training.matching.estimates import SampleLogs

_LARGEST_LOG = 700.0  # of a double
# Of log u under the reverse KL: so a sample without scores, which has no place in any target, weighs much but not
# infinitely.
_FARTHEST = 20.0


@dataclass(frozen=True)
class Divergence:
    """A divergence.

    Attributes:
        derivative: f'(u) from log u, float64 [n]; log u is +inf for a sample outside of the target.
        at_target: E_pi f'(u) where pi is the target: f'(1).
        exact_mean: E_pi f'(u), if it is the same for every pi.
        bounded: whether f'(u) has a limit for samples outside of the target.
    """

    derivative: Callable[[Floats], Floats]
    at_target: float
    exact_mean: float | None = None
    bounded: bool = True


def _jensen_shannon(log_u: Floats) -> Floats:
    # log(2u / (1 + u)) = log 2 - log(1 + 1/u)
    derivative: Floats = np.log(2.0) - np.logaddexp(0.0, -log_u)
    return derivative


DIVERGENCES: dict[str, Divergence] = {
    # KL(p || pi), that of distributional policy gradients: covers all of the target.
    "kl": Divergence(lambda log_u: -np.exp(np.minimum(-log_u, _LARGEST_LOG)), -1.0, exact_mean=-1.0),
    # KL(pi || p), that of reinforcement learning with a KL penalty: infinite outside of the target.
    "reverse-kl": Divergence(lambda log_u: np.minimum(log_u, _FARTHEST) + 1.0, 1.0, bounded=False),
    "js": Divergence(_jensen_shannon, 0.0),
    "tv": Divergence(lambda log_u: np.sign(log_u) / 2, 0.0),
}


def sample_weights(
    divergence: Divergence, samples: SampleLogs, log_z: Floats | float, baseline: float
) -> tuple[Floats, Floats]:
    """Return A and f'(u) of samples x ~ q: the mean of A grad log pi estimates -grad D_f(pi || p).

    A is -pi/q (f'(u) - baseline); for the forward KL this is p/q - pi/q.

    Args:
        divergence: one of `DIVERGENCES`.
        samples: the samples.
        log_z: of all samples or of each; those of a context with -inf weigh 0.
        baseline: E_pi f'(u), or an estimate that does not depend on these samples.

    Returns:
        float64 [n] each; f'(u) is NaN in a context with a `log_z` of -inf.
    """
    known = np.broadcast_to(log_z, samples.target.shape) > -np.inf
    derivative = divergence.derivative(samples.model - samples.log_p(log_z))
    weights = -np.exp(samples.model - samples.proposal) * (derivative - baseline)
    return np.where(known, weights, 0.0), np.where(known, derivative, np.nan)
