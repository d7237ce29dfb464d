"""Compute exact quantiles of any number of float32 scores in constant memory, by counting."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

_BUCKETS = 1 << 16


class ScoreCounter:
    """Counts scores by the upper half of their float32 bit pattern.

    The bit patterns of non-negative floats, read as integers, have the order of the floats. The upper 16 bits of all
    scores, counted in a first pass, give the bucket of a rank; the lower 16 bits of that bucket's scores, counted in a
    second pass (see `exact_quantiles`), give the score. Counts can be added in any order.

    Attributes:
        counts: int64 [65536], number of scores by their upper 16 bits.
        total: the number of scores.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(_BUCKETS, dtype=np.int64)

    @property
    def total(self) -> int:
        """The number of scores counted."""
        return int(self.counts.sum())

    def add(self, scores: NDArray[np.float32]) -> None:
        """Count float32 scores of any shape.

        Raises:
            ValueError: a score is negative, NaN or infinite.
        """
        self.counts += np.bincount(_bits(scores) >> 16, minlength=_BUCKETS)


def exact_quantiles(
    counters: Mapping[str, ScoreCounter],
    pieces: Callable[[], Iterable[Mapping[str, NDArray[np.float32]]]],
    fractions: Mapping[str, Sequence[Fraction]],
) -> dict[str, list[float]]:
    """Compute quantiles by the inverted CDF: the smallest score `s` with at least `fraction * total` scores <= `s`.

    Args:
        counters: the first pass, over all scores, by column.
        pieces: yields the same scores again, by column, in pieces of any order and size; called once, or not at all if
            there are no scores.
        fractions: by column, each in [0, 1]; 0 gives the smallest score.

    Returns:
        By column a score for each fraction, exactly a float32; 0.0 if a column has no scores.

    Raises:
        ValueError: the scores of the second pass differ from those of the first.
    """
    searches = {column: _Search(counters[column], wanted) for column, wanted in fractions.items()}
    if any(search.lower for search in searches.values()):
        for piece in pieces():
            for column, scores in piece.items():
                searches[column].add(scores)
    return {column: search.quantiles() for column, search in searches.items()}


class _Search:
    """The second pass over one column: counts the lower 16 bits of scores in the buckets that contain a rank."""

    def __init__(self, counter: ScoreCounter, fractions: Sequence[Fraction]) -> None:
        self.counts = counter.counts
        self.cumulative = np.cumsum(counter.counts)
        total = counter.total
        self.ranks = [max(1, -(-total * each.numerator // each.denominator)) for each in fractions]
        self.buckets = [int(np.searchsorted(self.cumulative, rank)) for rank in self.ranks] if total else []
        self.lower = {bucket: np.zeros(_BUCKETS, dtype=np.int64) for bucket in self.buckets}

    def add(self, scores: NDArray[np.float32]) -> None:
        bits = _bits(scores)
        upper = bits >> 16
        for bucket, counts in self.lower.items():
            counts += np.bincount(bits[upper == bucket] & 0xFFFF, minlength=_BUCKETS)

    def quantiles(self) -> list[float]:
        if not self.buckets:
            return [0.0 for _ in self.ranks]
        return [self._score(rank, bucket) for rank, bucket in zip(self.ranks, self.buckets, strict=True)]

    def _score(self, rank: int, bucket: int) -> float:
        lower = self.lower[bucket]
        if lower.sum() != self.counts[bucket]:
            raise ValueError("the scores of the second pass differ from those of the first")
        before = int(self.cumulative[bucket]) - int(self.counts[bucket])
        low = int(np.searchsorted(np.cumsum(lower), rank - before))
        return float(np.uint32(bucket << 16 | low).view(np.float32))


def _bits(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    # Adding 0 turns -0.0, whose bit pattern would sort last, into 0.0.
    flat = np.asarray(scores, dtype=np.float32).reshape(-1) + np.float32(0)
    if not (np.isfinite(flat).all() and (flat >= 0).all()):
        raise ValueError("a score is negative, NaN or infinite")
    return flat.view(np.uint32)
