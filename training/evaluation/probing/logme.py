"""LogME: the log evidence of a linear model of labels, a measure of how readable they are without any fitting.

Source: You et al., LogME (ICML 2021; arXiv 2110.10545). All dimensions of the features count in the evidence.
"""

import math

import numpy as np
from numpy.typing import NDArray

_ITERATIONS, _TOLERANCE = 200, 1e-6
# Keeps the precisions finite where the features explain the labels completely, or not at all.
_TINY = 1e-12

Floats = NDArray[np.float64]


def logme(features: NDArray[np.floating], labels: NDArray[np.bool_]) -> float:
    """The largest log evidence per row, in nats, as a mean over both classes, each against the other.

    The scale of the features does not matter.

    Args:
        features: float [n, D].
        labels: bool [n].
    """
    values = features.astype(np.float64)
    # Only a unit: the best alpha changes with it, and the evidence stays.
    values /= math.sqrt(np.mean(values**2)) or 1.0
    left, singular, _ = np.linalg.svd(values, full_matrices=False)
    return float(np.mean([_of_targets(left, singular**2, each.astype(np.float64)) for each in (labels, ~labels)]))


def _of_targets(left: Floats, sigma: Floats, targets: Floats) -> float:
    n = len(targets)
    squares = (left.T @ targets) ** 2
    beyond = max(0.0, float(targets @ targets - squares.sum()))
    alpha = beta = 1.0
    for _ in range(_ITERATIONS):
        before = alpha / beta
        gamma = float((sigma / (sigma + before)).sum())
        weights, residual = _norms(sigma, squares, beyond, before)
        alpha = max(gamma, _TINY) / (weights + _TINY)
        beta = max(n - gamma, _TINY) / (residual + _TINY)
        if abs(alpha / beta - before) <= _TOLERANCE * before:
            break
    return log_evidence(sigma, squares, beyond, alpha, beta, n) / n


def log_evidence(sigma: Floats, squares: Floats, beyond: float, alpha: float, beta: float, n: int) -> float:
    """Return log p(y | F, alpha, beta) with weights w ~ N(0, I / alpha) and y ~ N(F w, I / beta), in nats.

    Args:
        sigma: float64 [k], squared singular values of F; F = U S V^T.
        squares: float64 [k], (U^T y)^2.
        beyond: |y|^2 minus the sum of `squares`.
        alpha: precision of the weights.
        beta: precision of the noise.
        n: rows of F.
    """
    weights, residual = _norms(sigma, squares, beyond, alpha / beta)
    # D/2 log alpha - 1/2 log det(alpha I + beta F^T F): each of the D - k dimensions beyond F's rank adds 0.
    determinant = -0.5 * float(np.log1p(sigma * (beta / alpha)).sum())
    return determinant + 0.5 * (n * math.log(beta / (2 * math.pi)) - beta * residual - alpha * weights)


def _norms(sigma: Floats, squares: Floats, beyond: float, ratio: float) -> tuple[float, float]:
    """Return |m|^2 and |y - F m|^2 of the posterior mean m, for alpha / beta = `ratio`."""
    weights = float((sigma * squares / (ratio + sigma) ** 2).sum())
    return weights, float((squares / (1 + sigma / ratio) ** 2).sum()) + beyond
