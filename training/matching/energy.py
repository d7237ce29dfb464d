"""The target of distribution matching: an energy-based model, the closest to a prior that keeps the constraints.

Among all distributions c with the wanted moments, the one closest to the prior in KL(c || a) is P(x) / Z with
P(x) = a(x) b(x) exp(lambda . phi(x)): b is 1 where every pointwise constraint is kept, else 0, and the other
constraints have a finite lambda (Khalifa, Elsahar and Dymetman, arXiv 2012.11635, section 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scorers.amounts import format_count
from scorers.errors import UserError
from training.lambdas import UnreachableMomentsError, solve_lambdas
from training.matching.constraints import Constraint, Floats
from training.matching.estimates import effective_size

FEWEST_EFFECTIVE = 50


@dataclass(frozen=True)
class EnergyModel:
    """An unnormalised target.

    Attributes:
        constraints: the constraints.
        lambdas: one for each; those of pointwise constraints are not used.
    """

    constraints: tuple[Constraint, ...]
    lambdas: tuple[float, ...]

    def log_factor(self, features: Floats) -> Floats:
        """Return log P(x) - log a(x), float64 [n]; -inf for samples outside of the target.

        Samples without scores are outside: a scorer that cannot say is never taken to say 0.

        Args:
            features: float64 [n, k], from `feature_matrix`.
        """
        pointwise = np.array([each.pointwise for each in self.constraints])
        lambdas = np.where(pointwise, 0.0, self.lambdas)
        outside = np.isnan(features).any(axis=1) | (features[:, pointwise] == 0).any(axis=1)
        factor: Floats = np.where(outside, -np.inf, np.nan_to_num(features) @ lambdas)
        return factor


def fit(constraints: Sequence[Constraint], features: Floats, fewest: float = FEWEST_EFFECTIVE) -> EnergyModel:
    """Find the lambdas from samples of the prior.

    Args:
        constraints: at least one.
        features: float64 [n, k], of samples x ~ a.
        fewest: the least effective number of samples.

    Raises:
        UserError: no sample is in the target, moments are out of reach of these samples or contradict each other, or
            so few samples carry the target that its lambdas would be noise. Says what is reachable.
    """
    pointwise = np.array([each.pointwise for each in constraints])
    scored = ~np.isnan(features).any(axis=1)
    if not scored.any():
        raise UserError("None of the samples of the run can be scored, so there is no target for them.")
    for index in np.flatnonzero(pointwise).tolist():
        if not (features[scored][:, index] == 1).any():
            raise UserError(_never(constraints[index], int(scored.sum())))
    inside = scored & (features[:, pointwise] == 1).all(axis=1)
    drawn = format_count(len(features), "sample")
    if inside.sum() < min(fewest, len(features)):
        raise UserError(
            f"{int(inside.sum()):,} of {drawn} of the run keep all pointwise constraints (a share of 1); at least "
            f"{fewest:g} are needed. Raise a threshold, or draw more samples with moment_samples."
        )
    lambdas = np.zeros(len(constraints))
    if not pointwise.all():
        finite = np.flatnonzero(~pointwise).tolist()
        others = [constraints[index] for index in finite]
        try:
            solved = solve_lambdas(features[np.ix_(inside, finite)], [each.moment for each in others])
        except UnreachableMomentsError as error:
            raise UserError(_unreachable(others, error, int(inside.sum()))) from None
        lambdas[finite] = solved.values
    model = EnergyModel(tuple(constraints), tuple(lambdas.tolist()))
    size = effective_size(model.log_factor(features))
    if size < min(fewest, len(features)):
        raise UserError(
            f"The targets are too far from the run: the {drawn} are worth {size:.1f} of the target (effective sample "
            f"size), at least {fewest:g} are needed. Give weaker targets, or draw more samples with moment_samples."
        )
    return model


def _never(constraint: Constraint, scored: int) -> str:
    return (
        f"The constraint '{constraint}': none of {format_count(scored, 'sample')} of the run keeps it, so the target "
        "cannot be estimated. Raise the threshold, or draw more samples with moment_samples."
    )


def _unreachable(constraints: Sequence[Constraint], error: UnreachableMomentsError, samples: int) -> str:
    if error.index is None:
        nearest = ", ".join(
            f"{each.feature_name}: {value:.4g}" for each, value in zip(constraints, error.nearest.tolist(), strict=True)
        )
        names = ", ".join(f"'{each}'" for each in constraints)
        return f"The constraints {names} contradict each other on samples of the run; close to them is {nearest}."
    constraint = constraints[error.index]
    low, high = float(error.low[error.index]), float(error.high[error.index])
    if constraint.threshold is not None and high == 0:
        return _never(constraint, samples)
    if constraint.threshold is not None and low == 1:
        return (
            f"The constraint '{constraint}': each of {format_count(samples, 'sample')} of the run keeps it, so a share "
            f"of {constraint.moment:g} cannot be estimated. Give a share of 1, or leave the constraint out."
        )
    return (
        f"The constraint '{constraint}': {format_count(samples, 'sample')} of the run have values from {low:.4g} to "
        f"{high:.4g}; a mean must lie strictly between them."
    )
