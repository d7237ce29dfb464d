"""Combine several score columns of a token store into one, so that streams and objectives handle a single column.

Fine-Grained RLHF (arXiv 2306.01693) uses a weighted sum of rewards, one per kind of preference.
"""

import contextlib
import hashlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset.tags import document_limit, is_aligned
from training.data.arrays import read_array, write_array
from training.data.store import TokenStore

FOLDER = "combined"

# Cache the scores from this many sentences on: below, computing them takes some hundredths of a second.
_WORTH_KEEPING = 1_000_000
_CHUNK = 1 << 22
# The smallest positive float32 that no device flushes to 0.
_ABOVE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Combination:
    """A formula that makes one score of several.

    Without thresholds it is the weighted sum, whose negative is the weighted sum of rewards. With thresholds it is
    max over columns of weight * (score - threshold), which is <= 0 exactly where every score is <= its own threshold,
    compared as float32; the weights then only scale the distance above 0.

    Attributes:
        weights: > 0, by column, in order.
        thresholds: of the same columns; None for the weighted sum.
    """

    weights: tuple[tuple[str, float], ...]
    thresholds: tuple[float, ...] | None = None

    @classmethod
    def of(cls, weights: Mapping[str, float], thresholds: Mapping[str, float] | None = None) -> "Combination":
        """Build a combination from weights, and thresholds if any, by column."""
        return cls(
            tuple(weights.items()), None if thresholds is None else tuple(thresholds[column] for column in weights)
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it combines."""
        return tuple(column for column, _ in self.weights)

    @property
    def name(self) -> str:
        """The combined column's name: the formula, such as `1*toxicity+0.5*pii`; unique for each combination.

        No column of a labelled dataset can have such a name.
        """
        if self.thresholds is None:
            return "+".join(f"{weight!r}*{column}" for column, weight in self.weights)
        margins = [
            f"{weight!r}*({column}-{threshold!r})"
            for (column, weight), threshold in zip(self.weights, self.thresholds, strict=True)
        ]
        return f"max({', '.join(margins)})"

    def sentences(self, scores: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Combine the columns' scores, each float32 [n], into float32 [n]; NaN where any is NaN."""
        aligned = [is_aligned(each, limit) for each, limit in zip(scores, self.thresholds or (), strict=False)]
        return self._combine(scores, aligned).astype(np.float32)

    def documents(self, means: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Combine the columns' document means by the same formula into float64 [n]; NaN where any is NaN."""
        limits = map(document_limit, self.thresholds or ())
        return self._combine(means, [each <= limit for each, limit in zip(means, limits, strict=False)])

    def _combine(self, scores: Sequence[NDArray[Any]], aligned: Sequence[NDArray[np.bool_]]) -> NDArray[np.float64]:
        weights = [weight for _, weight in self.weights]
        exact = [each.astype(np.float64) for each in scores]
        if self.thresholds is None:
            return np.asarray(np.sum([weight * each for weight, each in zip(weights, exact, strict=True)], axis=0))
        margins = []
        for weight, each, limit, below in zip(weights, exact, self.thresholds, aligned, strict=True):
            margin = weight * (each - limit)
            # Keep the sign that the comparison gave, whatever rounding does to the margin.
            margins.append(np.where(below, np.minimum(margin, 0), np.maximum(margin, _ABOVE)))
        return np.asarray(np.max(margins, axis=0))


class Formula(Protocol):
    """Computes one column from several."""

    @property
    def name(self) -> str:
        """The column's name, unique for each formula; no column of a labelled dataset can have it."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it computes with, in order."""
        ...

    def sentences(self, scores: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Compute the column from the sentence scores of `columns`, each float32 [n]: float32 [n], NaN where any is."""
        ...

    def documents(self, means: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Compute the column from the document means of `columns`, each float64 [n]: float64 [n], NaN where any is."""
        ...


class CombinedStore(TokenStore):
    """A token store with one more column: a combination of its columns, named `combination.name`.

    The combined scores of a large store are cached beside it as memory-mapped arrays; where the cache cannot be
    written, they are computed each time.
    """

    def __init__(self, store: TokenStore, combination: Formula) -> None:
        super().__init__(store.path, store.meta)
        self.combination = combination

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopen, (self.path, self.combination))

    @property
    def columns(self) -> list[str]:
        """The score columns, the combined one last."""
        return [*super().columns, self.combination.name]

    def scores(self, column: str) -> NDArray[np.float32]:
        """Return float32 [num_sentences]; in the combined column, NaN where any part has no score.

        Raises:
            UserError: there is no such column.
        """
        return self._combined_scores if column == self.combination.name else super().scores(column)

    def document_means(self, column: str) -> NDArray[np.float64]:
        """Return float64 [num_documents]; for the combined column, the same formula applied to its parts' means.

        Raises:
            UserError: there is no such column.
        """
        return self._combined_means if column == self.combination.name else super().document_means(column)

    @cached_property
    def _combined_scores(self) -> NDArray[np.float32]:
        return self._load_or_compute("scores", self._compute_scores)

    @cached_property
    def _combined_means(self) -> NDArray[np.float64]:
        parts = [super(CombinedStore, self).document_means(column) for column in self.combination.columns]
        return self.combination.documents(parts)

    def _compute_scores(self) -> NDArray[np.float32]:
        parts = [super(CombinedStore, self).scores(column) for column in self.combination.columns]
        found = np.empty(self.num_sentences, dtype=np.float32)
        for first in range(0, len(found), _CHUNK):
            some = slice(first, first + _CHUNK)
            found[some] = self.combination.sentences([part[some] for part in parts])
        return found

    def _load_or_compute(self, what: str, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        if self.num_sentences < _WORTH_KEEPING:
            return compute()
        key = hashlib.blake2b(self.combination.name.encode(), digest_size=16).hexdigest()
        file = self.path / FOLDER / f"{what}.{key}.arrow"
        # A missing or damaged cache is computed again.
        with contextlib.suppress(OSError, pa.ArrowException):
            cached = read_array(file)
            if len(cached) == self.num_sentences:
                return cached
        found = compute()
        with contextlib.suppress(OSError):
            _save(found, file)
        return found


def _reopen(path: Path, combination: Formula) -> CombinedStore:
    return CombinedStore(TokenStore.open(path), combination)


def _save(values: NDArray[Any], file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        write_array(temporary, values)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
