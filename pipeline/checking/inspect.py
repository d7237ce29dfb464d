"""Describe the contents of a labelled dataset: exact quantiles and histograms of every score, tags and nulls."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset import LabelledDataset
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.quantiles import ScoreCounter, exact_quantiles
from pipeline.dataset.tags import is_aligned
from pipeline.sealing.extent import UnfinishedStep, unfinished
from pipeline.storage.open import open_storage
from scorers.errors import UserError

PERCENTILES = ("0", "1", "5", "10", "25", "50", "75", "90", "95", "99", "99.9", "100")

# Nearly all misalignment scores are small: two bins per decade, and one for scores of exactly 0.
_EDGES = np.array([0.0, *(10.0 ** (half / 2) for half in range(-12, 3))], dtype=np.float32)
_MEANS = " document means"


@dataclass(frozen=True)
class Bin:
    """`count` scores in (`low`, `high`]; `low` is None in the bin of zeros, `high` in the last one."""

    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class ColumnReport:
    """Statistics of a score column.

    Attributes:
        column, kind, fingerprint, threshold, threshold_spec: as in the manifest.
        documents_null: documents that the scorer does not apply to.
        documents_scored: all other documents, including those without sentences.
        sentences: sentences with a score.
        aligned: sentences with a score <= threshold.
        mean: mean score of the sentences; None if there are none.
        quantiles: exact quantiles (inverted CDF) over sentences, by percentile; empty if there are none.
        document_quantiles: the same over the documents' mean scores, to which `filtering` thresholds apply.
        histogram: histogram of the sentences' scores, from the first to the last bin that is not empty.
    """

    column: str
    kind: str
    fingerprint: str
    threshold: float
    threshold_spec: str
    documents_null: int
    documents_scored: int
    sentences: int
    aligned: int
    mean: float | None
    quantiles: dict[str, float]
    document_quantiles: dict[str, float]
    histogram: list[Bin]

    @property
    def share_aligned(self) -> float | None:
        """The share of aligned sentences among those with a score; None if there are none."""
        return self.aligned / self.sentences if self.sentences else None


@dataclass(frozen=True)
class InspectReport:
    """A dataset, its score columns, and its unfinished steps; contains no text of the corpus."""

    uri: str
    manifest: Manifest
    columns: list[ColumnReport]
    unfinished: tuple[UnfinishedStep, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {
            "dataset": self.uri,
            "generation": self.manifest.generation,
            "documents": self.manifest.rows,
            "sentences": self.manifest.sentences,
            "bytes_text": self.manifest.bytes_text,
            "ledger": self.manifest.ledger.model_dump(mode="json", exclude={"segments", "quarantine"}),
            "unfinished": [str(each) for each in self.unfinished],
            "columns": [asdict(each) | {"share_aligned": each.share_aligned} for each in self.columns],
        }


def inspect_dataset(dataset: LabelledDataset) -> InspectReport:
    """Describe every score column, reading the scores twice in constant memory.

    Raises:
        DamagedError: a shard cannot be read.
    """
    tallies = {column: _Tally(dataset.manifest.thresholds[column].value) for column in dataset.columns}
    for piece in _pieces(dataset):
        for column, lists in piece.items():
            tallies[column].add(lists)
    counters = {column: tally.scores for column, tally in tallies.items()}
    counters |= {column + _MEANS: tally.means for column, tally in tallies.items()}
    fractions = [Fraction(each) / 100 for each in PERCENTILES]
    quantiles = exact_quantiles(
        counters, lambda: map(_with_means, _pieces(dataset)), dict.fromkeys(counters, fractions)
    )
    columns = []
    for column, tally in tallies.items():
        entry, threshold = dataset.manifest.scorers[column], dataset.manifest.thresholds[column]
        columns.append(
            ColumnReport(
                column=column,
                kind=entry.kind,
                fingerprint=entry.fingerprint,
                threshold=threshold.value,
                threshold_spec=threshold.spec,
                documents_null=tally.null,
                documents_scored=tally.documents,
                sentences=tally.scores.total,
                aligned=tally.aligned,
                mean=tally.sum / tally.scores.total if tally.scores.total else None,
                quantiles=_by_percentile(quantiles[column], tally.scores),
                document_quantiles=_by_percentile(quantiles[column + _MEANS], tally.means),
                histogram=tally.histogram(),
            )
        )
    return InspectReport(dataset.uri, dataset.manifest, columns, _unfinished(dataset.uri))


def _unfinished(uri: str) -> tuple[UnfinishedStep, ...]:
    try:
        return unfinished(open_storage(uri))
    except (UserError, OSError):
        # The dataset may be on a storage without jobs (hdfs://), or the user may not read the job.
        return ()


@dataclass
class _Tally:
    """Accumulates the statistics of a column in one pass."""

    threshold: float
    scores: ScoreCounter = field(default_factory=ScoreCounter)
    means: ScoreCounter = field(default_factory=ScoreCounter)
    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(_EDGES) + 1, dtype=np.int64))
    null: int = 0
    documents: int = 0
    aligned: int = 0
    sum: float = 0.0

    def add(self, lists: pa.ListArray) -> None:
        scores = _flat(lists)
        self.scores.add(scores)
        self.means.add(_means(lists))
        self.bins += np.bincount(np.searchsorted(_EDGES, scores, side="left"), minlength=len(self.bins))
        self.null += lists.null_count
        self.documents += len(lists) - lists.null_count
        self.aligned += int(is_aligned(scores, self.threshold).sum())
        self.sum += float(scores.sum(dtype=np.float64))

    def histogram(self) -> list[Bin]:
        filled = np.flatnonzero(self.bins)
        if not len(filled):
            return []
        lows = [None, *_EDGES.tolist()]
        highs = [*_EDGES.tolist(), None]
        return [
            Bin(lows[index], highs[index], int(self.bins[index]))
            for index in range(int(filled[0]), int(filled[-1]) + 1)
        ]


def _pieces(dataset: LabelledDataset) -> Iterator[dict[str, pa.ListArray]]:
    for batch in dataset.read_batches(dataset.columns, rows=4096):
        yield {column: batch.column(column) for column in dataset.columns}


def _with_means(piece: Mapping[str, pa.ListArray]) -> dict[str, NDArray[np.float32]]:
    return {column: _flat(lists) for column, lists in piece.items()} | {
        column + _MEANS: _means(lists) for column, lists in piece.items()
    }


def _flat(lists: pa.ListArray) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = lists.flatten().to_numpy(zero_copy_only=False)
    return scores


def _means(lists: pa.ListArray) -> NDArray[np.float32]:
    """The mean score of each document that has scores."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    sums = np.bincount(np.repeat(np.arange(len(lists)), lengths), weights=_flat(lists), minlength=len(lists))
    filled = lengths > 0
    means: NDArray[np.float32] = (sums[filled] / lengths[filled]).astype(np.float32)
    return means


def _by_percentile(values: list[float], counter: ScoreCounter) -> dict[str, float]:
    return dict(zip(PERCENTILES, values, strict=True)) if counter.total else {}
