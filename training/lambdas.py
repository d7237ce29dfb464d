"""Find the weights exp(lambda . phi) under which a sample has given moments: maximum entropy, or minimal divergence.

Of all distributions c with E_c[phi] = mu, the one closest to a prior p in KL(c || p) is proportional to p exp(lambda .
phi) (arXiv 2012.11635, section 2). Its lambda minimises the convex dual log E_p[exp(lambda . (phi - mu))], whose
gradient is the error of the moments and whose Hessian their covariance; so Newton's method finds it in some ten steps.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Rows at a time: bounds the memory besides the features themselves.
_CHUNK = 1 << 20
_MOST_STEPS = 200
# Stop where twice what the dual can still fall is this little, or where it is rounding: the error of the moments is
# below the second and the dual hardly falls faster than towards a minimum at infinity.
_NOTHING = 1e-26
_ROUNDING = 1e-12
_SHORTEST = 1e-12
# Keeps Newton's system solvable where features depend on each other.
_RIDGE = 1e-13
# With this penalty the dual has a minimum even if no weights reach the moments: the nearest reachable ones.
_PENALTY = 1e-4


class UnreachableMomentsError(ValueError):
    """No weights give these moments.

    Attributes:
        index: the feature whose moment alone is outside its open range; None if only the moments together are.
        low, high: float64 [k], the least and the greatest value of each feature.
        nearest: float64 [k], moments close to the requested ones: that weights give, if `index` is None.
    """

    def __init__(
        self,
        index: int | None,
        low: NDArray[np.float64],
        high: NDArray[np.float64],
        nearest: NDArray[np.float64],
    ) -> None:
        super().__init__("no weights exp(lambda . phi) give these moments")
        self.index, self.low, self.high, self.nearest = index, low, high, nearest


@dataclass(frozen=True)
class Lambdas:
    """The solution of `solve_lambdas`.

    Attributes:
        values: float64 [k], the lambdas.
        log_normaliser: log sum_i p_i exp(lambda . phi_i), where p is the prior and sums to 1.
        effective_size: (sum_i w_i)^2 / sum_i w_i^2, the number of equally weighted rows with the same variance.
        steps: of Newton's method.
    """

    values: NDArray[np.float64]
    log_normaliser: float
    effective_size: float
    steps: int


def solve_lambdas(
    features: ArrayLike,
    moments: ArrayLike,
    log_weights: ArrayLike | None = None,
    counts: ArrayLike | None = None,
) -> Lambdas:
    """Return lambda with sum_i w_i phi_i / sum_i w_i = moments, where w_i = exp(log_weights_i + lambda . phi_i).

    Args:
        features: [n, k], phi of each row, finite; converted to float64 a part at a time.
        moments: [k], finite.
        log_weights: [n], of the rows before: the log of the prior, or log a(x) - log q(x) of samples x ~ q; any
            constant may be added; -inf leaves a row out. None weights all rows equally.
        counts: [n], > 0, how often each row occurs; None for once.

    Raises:
        UnreachableMomentsError: a moment is not strictly between the least and the greatest value of its feature
            (equal to both is fine), or the moments contradict each other.
        ValueError: there are no rows, or shapes do not match.
    """
    phi = np.asarray(features)
    wanted = np.asarray(moments, dtype=np.float64)
    if phi.ndim != 2 or wanted.shape != phi.shape[1:]:
        raise ValueError("features must be [n, k], and moments [k]")
    prior = np.zeros(len(phi)) if log_weights is None else np.asarray(log_weights, dtype=np.float64)
    number = np.ones(len(phi)) if counts is None else np.asarray(counts, dtype=np.float64)
    if prior.shape != number.shape or len(prior) != len(phi):
        raise ValueError("log_weights and counts must be [n]")
    used = prior > -np.inf
    if not used.all():
        phi, prior, number = phi[used], prior[used], number[used]
    if not len(phi):
        raise ValueError("there is no row")
    low, high = phi.min(0).astype(np.float64), phi.max(0).astype(np.float64)
    constant = (low == high) & (low == wanted)
    for index in np.flatnonzero(~constant & ~((low < wanted) & (wanted < high))).tolist():
        raise UnreachableMomentsError(index, low, high, np.clip(wanted, low, high))
    # In units of the larger distance from the moment to an end of the range, so that one tolerance fits all features.
    scale = np.where(constant, 1.0, np.maximum(high - wanted, wanted - low))
    problem = _Dual(phi, wanted, scale, prior + np.log(number), number)
    lambdas, steps = _minimise(problem)
    if lambdas is None:
        penalised, _ = _minimise(problem, _PENALTY)
        nearest = wanted if penalised is None else wanted + problem.at(penalised).gradient * scale
        raise UnreachableMomentsError(None, low, high, nearest)
    values = lambdas / scale
    return Lambdas(values, problem.at(lambdas).value + float(values @ wanted), problem.effective_size(lambdas), steps)


@dataclass(frozen=True)
class _Point:
    """The dual at some lambda, and its derivatives."""

    value: float
    gradient: NDArray[np.float64]
    hessian: NDArray[np.float64]


@dataclass(frozen=True)
class _Dual:
    """The dual of features that are shifted by their moments and scaled, in log space."""

    features: NDArray[np.number]
    moments: NDArray[np.float64]
    scale: NDArray[np.float64]
    log_prior: NDArray[np.float64]
    counts: NDArray[np.float64]

    def least(self) -> float:
        """Return a bound that the dual of reachable moments never falls below: the log of the least prior of a row.

        If the moments are a mean of rows, then for any lambda some row has lambda . (phi - mu) >= 0.
        """
        return float(self.log_prior.min() - _log_sum(self.log_prior))

    def at(self, lambdas: NDArray[np.float64]) -> _Point:
        """Return the value, gradient and Hessian at lambdas, float64 [k]."""
        total, mean, square = self._sums(lambdas)
        return _Point(total - _log_sum(self.log_prior), mean, square - np.outer(mean, mean))

    def value(self, lambdas: NDArray[np.float64]) -> float:
        """Return the value alone."""
        return _log_sum(self._exponents(lambdas)) - _log_sum(self.log_prior)

    def effective_size(self, lambdas: NDArray[np.float64]) -> float:
        """Return the effective number of rows."""
        exponents = self._exponents(lambdas)
        return float(np.exp(2 * _log_sum(exponents) - _log_sum(2 * exponents - np.log(self.counts))))

    def _part(self, rows: slice) -> NDArray[np.float64]:
        return np.asarray((self.features[rows].astype(np.float64) - self.moments) / self.scale)

    def _parts(self) -> list[slice]:
        return [slice(first, first + _CHUNK) for first in range(0, len(self.features), _CHUNK)]

    def _exponents(self, lambdas: NDArray[np.float64]) -> NDArray[np.float64]:
        exponents = self.log_prior.copy()
        for rows in self._parts():
            exponents[rows] += self._part(rows) @ lambdas
        return exponents

    def _sums(self, lambdas: NDArray[np.float64]) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        exponents = self._exponents(lambdas)
        total = _log_sum(exponents)
        mean = np.zeros(len(lambdas))
        square = np.zeros((len(lambdas), len(lambdas)))
        for rows in self._parts():
            part, weights = self._part(rows), np.exp(exponents[rows] - total)
            mean += weights @ part
            square += (part * weights[:, None]).T @ part
        return total, mean, square


def _minimise(problem: _Dual, penalty: float = 0.0) -> tuple[NDArray[np.float64] | None, int]:
    """Minimise the dual plus penalty / 2 * |lambda|^2 by Newton's method; None if it has no minimum."""
    size = len(problem.moments)
    lambdas, least, previous = np.zeros(size), problem.least() - 1e-9, np.inf
    for step in range(_MOST_STEPS):
        point = problem.at(lambdas)
        if not penalty and point.value < least:
            return None, step
        value = point.value + penalty / 2 * float(lambdas @ lambdas)
        gradient = point.gradient + penalty * lambdas
        ridge = penalty + _RIDGE * max(float(np.trace(point.hessian)), _RIDGE)
        direction = -np.linalg.solve(point.hessian + ridge * np.eye(size), gradient)
        decrement = -float(gradient @ direction)
        if decrement < _NOTHING or (decrement > previous / 4 and np.abs(gradient).max() < _ROUNDING):
            return lambdas, step
        # Where the weights are nearly all on one side, the covariance is nearly 0 and Newton's step far too long.
        direction *= min(1.0, (2 + np.abs(lambdas).sum()) / np.abs(direction).sum())
        slope = float(gradient @ direction)
        previous, length, rounding = decrement, 1.0, 1e-14 * max(1.0, abs(value))
        while length > _SHORTEST:
            moved = lambdas + length * direction
            now = problem.value(moved) + penalty / 2 * float(moved @ moved)
            if now <= value + 1e-4 * length * slope + rounding:
                break
            length /= 2
        lambdas = moved
    return None, _MOST_STEPS


def _log_sum(exponents: NDArray[np.float64]) -> float:
    largest = float(exponents.max())
    return largest + float(np.log(np.exp(exponents - largest).sum()))
