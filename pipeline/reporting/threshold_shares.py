"""Count what each threshold would make aligned and what filtering would keep, by column and by group of documents."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset import LabelledDataset
from pipeline.dataset.manifest import Threshold
from pipeline.dataset.metadata import INPUTS, group_column, group_values, parse_metadata
from pipeline.dataset.quantiles import ScoreCounter
from scorers.errors import UserError
from scorers.printing import printable

OTHER = "other"

_ROWS = 4096
_MOST_GROUPS = 12
_MOST_NAMES = 10_000  # distinct groups to count before new ones join the rest
_LONGEST_NAME = 60

# Denser towards the top, where thresholds usually are.
_FRACTIONS = np.unique(np.concatenate([np.linspace(0, 1, 101), 1 - np.geomspace(1e-4, 0.1, 40)]))

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class GroupShares:
    """Documents with scores of one group, or of the whole dataset.

    Attributes:
        name: printable name of the group.
        sentences, characters: int64 [thresholds], sentences with score <= threshold, and their code points.
        documents, document_characters: int64 [thresholds], documents whose mean score is <= threshold, which is what
            filtering keeps, and the code points of their sentences.
    """

    name: str
    sentences: Counts
    characters: Counts
    documents: Counts
    document_characters: Counts


@dataclass(frozen=True)
class ColumnShares:
    """One score column.

    Attributes:
        column, kind: as in the manifest.
        committed: the threshold of its tags.
        thresholds: float32 [n], ascending; the last one is at or above every score.
        whole: all documents that the column scored.
        groups: the largest groups first, at most 12; the rest as `other`. Empty without groups.
        documents_null: documents that the scorer does not apply to.
    """

    column: str
    kind: str
    committed: Threshold
    thresholds: NDArray[np.float32]
    whole: GroupShares
    groups: list[GroupShares]
    documents_null: int

    @cached_property
    def committed_index(self) -> int:
        """Index of the committed threshold among `thresholds`."""
        return int(np.searchsorted(self.thresholds, np.float32(self.committed.value)))


def count_shares(dataset: LabelledDataset, columns: Sequence[str], by: str | None = None) -> list[ColumnShares]:
    """Count the shares of every threshold that the page offers, reading the scores twice in constant memory.

    Args:
        dataset: a sealed dataset.
        columns: score columns.
        by: groups of documents, as in `group_values`; None for no groups.

    Raises:
        DamagedError: a shard cannot be read.
        UserError: no document has the field of the metadata; names those that documents have.
    """
    survey = _Survey(columns, by)
    for batch in _batches(dataset, columns, by, text=False):
        survey.add(batch)
    if by is not None:
        survey.check_field(dataset.uri)
    groups = survey.largest_groups()
    tallies = {
        column: _Tally(thresholds_near_quantiles(survey.counters[column], _committed(dataset, column)), len(groups))
        for column in columns
    }
    numbers = {name: index for index, name in enumerate(groups)}
    for batch in _batches(dataset, columns, by, text=True):
        rows = _group_numbers(batch, by, numbers, len(groups))
        for column, tally in tallies.items():
            tally.add(batch, column, rows)
    labels = [*(_label(name) for name in groups), *([OTHER] if by is not None else [])]
    return [_column_shares(dataset, column, tally, labels) for column, tally in tallies.items()]


def _column_shares(dataset: LabelledDataset, column: str, tally: "_Tally", labels: Sequence[str]) -> ColumnShares:
    stops = tally.stops(_committed(dataset, column))
    groups = [tally.shares(label, slice(index, index + 1), stops) for index, label in enumerate(labels)]
    return ColumnShares(
        column=column,
        kind=dataset.manifest.scorers[column].kind,
        committed=dataset.manifest.thresholds[column],
        thresholds=tally.thresholds[stops],
        whole=tally.shares("all documents", slice(None), stops),
        groups=[group for group in groups if group.documents[-1]],
        documents_null=tally.null,
    )


def thresholds_near_quantiles(counter: ScoreCounter, committed: float) -> NDArray[np.float32]:
    """Choose thresholds with few digits near the quantiles of scores, float32 [n], ascending.

    They are 0, the committed threshold, and the upper end of each quantile's bucket (a relative error below 1 %)
    rounded up to three digits, so that they read well and every score is at most the last one.
    """
    found = {np.float32(0), np.float32(committed)}
    if counter.total:
        cumulated = np.cumsum(counter.counts)
        ranks = np.maximum(1, np.ceil(_FRACTIONS * counter.total))
        for bucket in np.unique(np.searchsorted(cumulated, ranks)).tolist():
            upper = np.uint32(bucket << 16 | 0xFFFF).view(np.float32)
            found.add(_rounded_up(float(upper)))
    return np.array(sorted(found), dtype=np.float32)


def _rounded_up(value: float) -> np.float32:
    """The smallest number of three decimal digits at or above `value`, as float32."""
    unit = 10.0 ** (np.floor(np.log10(value)) - 2)
    rounded = np.float32(f"{np.ceil(value / unit) * unit:.2e}")
    return rounded if float(rounded) >= value else np.nextafter(rounded, np.float32(np.inf))


def _committed(dataset: LabelledDataset, column: str) -> float:
    return dataset.manifest.thresholds[column].value


class _Survey:
    """The first pass: counts scores by bucket, and sentences by group."""

    def __init__(self, columns: Sequence[str], by: str | None) -> None:
        self.counters = {column: ScoreCounter() for column in columns}
        self._by = by
        self._sizes: Counter[str] = Counter()
        self._fields: Counter[str] = Counter()

    def add(self, batch: pa.RecordBatch) -> None:
        for column, counter in self.counters.items():
            lists = batch.column(column)
            counter.add(lists.flatten().to_numpy(zero_copy_only=False))
            counter.add(_means(lists)[1])
        if self._by is None:
            return
        if self._by != INPUTS:
            for text in batch.column("meta").to_pylist():
                if len(self._fields) < _MOST_NAMES:
                    self._fields.update(parse_metadata(text).keys())
        sizes = pc.list_value_length(batch.column("ends")).to_numpy(zero_copy_only=False)
        for name, size in zip(group_values(batch, self._by), sizes.tolist(), strict=True):
            if name is not None and (name in self._sizes or len(self._sizes) < _MOST_NAMES):
                self._sizes[name] += size

    def check_field(self, uri: str) -> None:
        if self._by == INPUTS or self._sizes:
            return
        names = ", ".join(repr(printable(name)) for name, _ in self._fields.most_common(10))
        instead = f"Give one of its fields ({names}), or --by {INPUTS}" if names else f"Give --by {INPUTS}"
        raise UserError(
            f"--by {self._by}: no document of {uri} has this field in its metadata. {instead} for their files."
        )

    def largest_groups(self) -> list[str]:
        return [name for name, _ in sorted(self._sizes.items(), key=lambda each: (-each[1], each[0]))[:_MOST_GROUPS]]


class _Tally:
    """The second pass over one column: counts by threshold and group."""

    def __init__(self, thresholds: NDArray[np.float32], groups: int) -> None:
        self.thresholds = thresholds
        self.null = 0
        # By kind of count, group (the last one is the rest), and the first threshold that a score does not exceed.
        self._counts = np.zeros((4, groups + 1, len(thresholds)), dtype=np.int64)

    def add(self, batch: pa.RecordBatch, column: str, groups: Counts) -> None:
        lists = batch.column(column)
        self.null += lists.null_count
        scores: NDArray[np.float32] = lists.flatten().to_numpy(zero_copy_only=False)
        lengths, means = _means(lists)
        characters = _sentence_characters(batch.column("ends"), lengths)
        rows = np.repeat(np.arange(batch.num_rows), lengths)
        self._count(0, groups[rows], scores, np.ones(len(scores), dtype=np.int64))
        self._count(1, groups[rows], scores, characters)
        scored = np.flatnonzero(lengths)
        sizes = np.bincount(rows, weights=characters, minlength=batch.num_rows)[scored].astype(np.int64)
        self._count(2, groups[scored], means, np.ones(len(scored), dtype=np.int64))
        self._count(3, groups[scored], means, sizes)

    def _count(self, kind: int, groups: Counts, scores: NDArray[np.float32], amounts: Counts) -> None:
        places = np.searchsorted(self.thresholds, scores, side="left")
        np.add.at(self._counts[kind], (groups, places), amounts)

    def stops(self, committed: float) -> Counts:
        """Indices of the thresholds to offer: the lowest, the committed one, and those that change a count."""
        changes = self._counts.any(axis=(0, 1)) | (self.thresholds == np.float32(committed))
        changes[0] = True
        return np.flatnonzero(changes)

    def shares(self, name: str, groups: slice, stops: Counts) -> GroupShares:
        return GroupShares(name, *np.cumsum(self._counts[:, groups].sum(axis=1), axis=-1)[:, stops])


def _batches(
    dataset: LabelledDataset, columns: Sequence[str], by: str | None, *, text: bool
) -> Iterator[pa.RecordBatch]:
    wanted = [*columns]
    if by is not None:
        wanted.append(group_column(by))
    if text or by is not None:
        wanted.append("ends")
    return dataset.read_batches(wanted, rows=_ROWS)


def _group_numbers(batch: pa.RecordBatch, by: str | None, numbers: dict[str, int], rest: int) -> Counts:
    """The group of each document, int64 [rows]; `rest` for a document of none of the named groups."""
    if by is None:
        return np.full(batch.num_rows, rest)
    return np.array([rest if name is None else numbers.get(name, rest) for name in group_values(batch, by)])


def _label(name: str) -> str:
    shown = printable(name)
    # The end of a path says more than its beginning.
    return shown if len(shown) <= _LONGEST_NAME else f"…{shown[1 - _LONGEST_NAME :]}"


def _means(lists: pa.ListArray) -> tuple[Counts, NDArray[np.float32]]:
    """Sentences of each document, int64 [rows], and the mean scores of those that have any, float32."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    scores = lists.flatten().to_numpy(zero_copy_only=False)
    sums = np.bincount(np.repeat(np.arange(len(lists)), lengths), weights=scores, minlength=len(lists))
    filled = lengths > 0
    return lengths, (sums[filled] / lengths[filled]).astype(np.float32)


def _sentence_characters(ends: pa.ListArray, lengths: Counts) -> Counts:
    """Code points of the sentences of the documents that have scores, int64 [sentences]."""
    counts = pc.list_value_length(ends).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = ends.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    sizes = np.diff(flat, prepend=0)
    firsts = (np.cumsum(counts) - counts)[counts > 0]
    sizes[firsts] = flat[firsts]
    characters: Counts = sizes[np.repeat(lengths > 0, counts)]
    return characters
