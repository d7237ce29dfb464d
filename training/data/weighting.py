"""Weights of sentences that give a corpus the moments of `objective.targets`, as one more score column.

Of all distributions over the sentences that meet the targets, the closest to the corpus in KL weights a sentence by
exp(lambda . phi) / Z: phi are its features, such as whether its score is at most 0.001. The score column is minus the
logarithm of that weight, so that a stream, a mixture and a loss treat it as any other score.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorers.amounts import format_count
from scorers.errors import UserError
from training.data.tagged_stream import Stream
from training.lambdas import Lambdas, UnreachableMomentsError, solve_lambdas
from training.targets import Target

LEAST_EFFECTIVE = 50
# The weight of a sentence that a filter leaves out is exp of minus this: 0 in any precision, and no infinity.
_LEFT_OUT = 1e4
# Rounded, so that a resumption on another machine, whose sums round differently, gives the same weights.
_DIGITS = 10


@dataclass(frozen=True)
class Weighting:
    """The formula of a column: the negative logarithm of a sentence's weight.

    Attributes:
        targets: the features.
        lambdas: of each; 0 for those of `Target.is_filter`.
        log_mean: the log of the mean of exp(lambda . phi) over the tokens of the corpus, so that the mean weight is 1.
    """

    targets: tuple[Target, ...]
    lambdas: tuple[float, ...]
    log_mean: float

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it combines, one per target; a column may occur twice."""
        return tuple(each.column for each in self.targets)

    @property
    def name(self) -> str:
        """The column's name, the formula; unique, and no column of a dataset can have such a name."""
        terms = [
            f"[{each.feature}={each.moment!r}]" if each.is_filter else f"{value!r}*[{each.feature}]"
            for each, value in zip(self.targets, self.lambdas, strict=True)
        ]
        return f"weight({', '.join(terms)}; {self.log_mean!r})"

    def sentences(self, scores: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Compute the column from those of `columns`, each float32 [n]: float32 [n]; NaN where any is NaN."""
        return self._of(scores).astype(np.float32)

    def documents(self, means: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Apply the formula to document means, each float64 [n]."""
        return self._of(means)

    def _of(self, scores: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        found = np.full(len(scores[0]), self.log_mean)
        for target, value, each in zip(self.targets, self.lambdas, scores, strict=True):
            feature = target.of(each)
            found += np.where(feature != target.moment, _LEFT_OUT, 0.0) if target.is_filter else -value * feature
            found[np.isnan(each)] = np.nan
        return found


@dataclass(frozen=True)
class Solution:
    """Weights that meet targets.

    Attributes:
        weighting: the weights.
        before: the moments of the corpus as it is, in the order of the targets.
        sentences: in the streams.
        effective_sentences: equally weighted sentences with the same variance.
        least, greatest: weights of sentences, without those that are left out.
    """

    weighting: Weighting
    before: tuple[float, ...]
    sentences: int
    effective_sentences: float
    least: float
    greatest: float


def solve_targets(
    targets: tuple[Target, ...], streams: Sequence[Stream], shares: Sequence[Fraction], least_share: float
) -> Solution:
    """Find the weights under which the sentences of streams meet targets.

    A sentence of a mixture counts by how often its tokens are read: its dataset's share, divided by the dataset's
    tokens.

    Args:
        targets: at least one.
        streams: one per dataset, whose stores have the targets' columns; of sentences with all these scores.
        shares: of the run's blocks, one per stream.
        least_share: the least effective share of the sentences.

    Raises:
        UserError: no weights meet the targets, or too few sentences would count; says what is reachable.
    """
    parts = [_Sentences.of(targets, stream) for stream in streams]
    features = np.concatenate([part.features for part in parts])
    counts, tokens = (np.concatenate([getattr(part, name) for part in parts]) for name in ("counts", "tokens"))
    if not len(features):
        raise UserError("No document of the stream has a sentence, so objective.targets cannot be met.")
    log_prior = np.concatenate(
        [
            np.full(len(part.features), math.log(share / max(1, stream.num_tokens)))
            for part, stream, share in zip(parts, streams, shares, strict=True)
        ]
    )
    prior = np.exp(log_prior - log_prior.max())
    before = (prior * counts) @ features / (prior @ counts)
    kept = np.all([features[:, i] == each.moment for i, each in enumerate(targets) if each.is_filter], axis=0)
    kept = np.broadcast_to(kept, len(features))
    if not kept.any():
        raise UserError(f"No sentence of the stream meets {_listed([each for each in targets if each.is_filter])}.")
    finite = [number for number, each in enumerate(targets) if not each.is_filter]
    found = _solve(targets, finite, features, np.where(kept, log_prior, -np.inf), counts, before)
    lambdas = np.zeros(len(targets))
    lambdas[finite] = [_rounded(value) for value in found.values]
    exponents = features @ lambdas
    with np.errstate(divide="ignore"):
        of_tokens = log_prior + np.log(tokens)
    mean = _log_sum((of_tokens + exponents)[kept & (tokens > 0)]) - _log_sum(of_tokens[tokens > 0])
    weighting = Weighting(targets, tuple(lambdas.tolist()), _rounded(mean))
    sentences = int(counts.sum())
    _refuse_few(found.effective_size, sentences, least_share, targets, before)
    weights = np.exp(exponents[kept] - weighting.log_mean)
    return Solution(
        weighting,
        tuple(before.tolist()),
        sentences,
        found.effective_size,
        float(weights.min()),
        float(weights.max()),
    )


def worsened(solution: Solution) -> tuple[str, ...]:
    """Return a warning for each target that gives more weight to misaligned sentences than they have."""
    return tuple(
        f"objective.targets: {target.feature} is {target.shown(before)} in the stream already; the target "
        f"{target.moment:g} gives misaligned sentences more weight than they have."
        for target, before in zip(solution.weighting.targets, solution.before, strict=True)
        if (target.moment > before if target.limit is None else target.moment < before)
    )


def _solve(
    targets: tuple[Target, ...],
    finite: list[int],
    features: NDArray[np.float32],
    log_prior: NDArray[np.float64],
    counts: NDArray[np.float64],
    before: NDArray[np.float64],
) -> Lambdas:
    moments = [targets[number].moment for number in finite]
    try:
        return solve_lambdas(features[:, finite], moments, log_prior, counts)
    except UnreachableMomentsError as error:
        filtered = " of those that the other targets keep" if len(finite) < len(targets) else ""
        if error.index is not None:
            target, now = targets[finite[error.index]], before[finite[error.index]]
            low, high = error.low[error.index], error.high[error.index]
            if target.limit is not None:
                every = "every sentence" if low else "no sentence"
                raise UserError(
                    f"objective.targets: {target.feature}: {target.moment:g} cannot be met: {every} of the "
                    f"stream{filtered} has a score of at most {target.limit:g}. Give another threshold."
                ) from None
            if low == high:
                raise UserError(
                    f"objective.targets: {target.feature}: {target.moment:g} cannot be met: every sentence of the "
                    f"stream{filtered} has the score {low:.6g}. Leave the target out."
                ) from None
            raise UserError(
                f"objective.targets: {target.feature}: {target.moment:g} cannot be met by weighting sentences whose "
                f"scores go from {low:.6g} to {high:.6g} (mean {now:.6g}). Give a value in between."
            ) from None
        nearest = ", ".join(
            f"{targets[number].feature}: {each:.6g}" for number, each in zip(finite, error.nearest, strict=True)
        )
        raise UserError(
            f"objective.targets: no weights of the sentences meet {_listed([targets[each] for each in finite])} "
            f"together{filtered}. The nearest that weights give is {nearest}."
        ) from None


def _refuse_few(
    effective: float, sentences: int, least_share: float, targets: tuple[Target, ...], before: NDArray[np.float64]
) -> None:
    least = max(LEAST_EFFECTIVE, least_share * sentences)
    if effective >= least:
        return
    now = ", ".join(f"{each.feature} is {each.shown(value)} now" for each, value in zip(targets, before, strict=True))
    raise UserError(
        f"Under weights that meet objective.targets, only {effective:,.1f} of {format_count(sentences, 'sentence')} "
        f"would count (effective sample size), {effective / sentences:.2%}; the least is {least:,.0f}: a model would "
        f"learn these by heart. {now}. Give targets closer to that, add data that meets them (--mix), or lower "
        f"objective.min_effective_share ({least_share:g}; never below {LEAST_EFFECTIVE} sentences)."
    )


@dataclass(frozen=True)
class _Sentences:
    """Sentences with their features; equal ones are one row if all features are 0 or 1."""

    features: NDArray[np.float32]
    counts: NDArray[np.float64]
    tokens: NDArray[np.float64]

    @classmethod
    def of(cls, targets: tuple[Target, ...], stream: Stream) -> "_Sentences":
        columns = [stream.store.scores(each.column) for each in targets]
        offsets = stream.store.sentence_offsets
        are_shares = all(each.limit is not None for each in targets) and len(targets) <= 16
        parts = []
        for sentence in stream.sentence_chunks():
            features = np.stack([each.of(column[sentence]) for each, column in zip(targets, columns, strict=True)], 1)
            tokens = (offsets[sentence + 1] - offsets[sentence]).astype(np.float64)
            part = cls(features, np.ones(len(features)), tokens)
            parts.append(part._grouped() if are_shares else part)
        if not parts:
            return cls(np.zeros((0, len(targets)), np.float32), np.zeros(0), np.zeros(0))
        features = np.concatenate([part.features for part in parts])
        counts, tokens = (np.concatenate([getattr(part, name) for part in parts]) for name in ("counts", "tokens"))
        whole = cls(features, counts, tokens)
        return whole._grouped() if are_shares else whole

    def _grouped(self) -> "_Sentences":
        code = self.features.astype(np.int64) @ (1 << np.arange(self.features.shape[1]))
        known, index = np.unique(code, return_inverse=True)
        features = (known[:, None] >> np.arange(self.features.shape[1])) & 1
        counts, tokens = (np.bincount(index, weights=each).astype(np.float64) for each in (self.counts, self.tokens))
        return _Sentences(features.astype(np.float32), counts, tokens)


def _listed(targets: Sequence[Target]) -> str:
    return " and ".join(f"{each.feature}: {each.moment:g}" for each in targets)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _log_sum(exponents: NDArray[np.float64]) -> float:
    largest = float(exponents.max())
    return largest + math.log(float(np.exp(exponents - largest).sum()))
