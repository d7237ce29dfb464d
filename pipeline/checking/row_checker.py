"""Check the rows of a labelled dataset: lossless splitting, unique and ordered keys, matching scores and tags."""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.checking.spans import wrong_spans
from pipeline.dataset.schema import spans_column
from pipeline.dataset.tags import tag_column, tags_of

Mask = NDArray[np.bool_]


class RowChecker:
    """Checks the rows of a dataset in order, one table at a time, in constant memory apart from its arguments.

    Args:
        thresholds: by score column, in the order of the schema.
        spans: the score columns that have spans.
        sources: the inputs, in order.
        quarantined: sorted positions of quarantined records by source.
        report: called with the description of a problem and the keys of the affected rows.
    """

    def __init__(
        self,
        thresholds: Mapping[str, float],
        spans: Collection[str],
        sources: Sequence[str],
        quarantined: Mapping[str, NDArray[np.int64]],
        report: Callable[[str, list[str]], None],
    ) -> None:
        self._thresholds = thresholds
        self._spans = spans
        self._order = {source: index for index, source in enumerate(sources)}
        self._quarantined = quarantined
        self._report = report
        self._last: tuple[int, int] = (-1, -1)

    def check(self, rows: pa.Table) -> None:
        """Check rows of `dataset_schema` that follow those of the last call."""
        rows = rows.combine_chunks()
        if not rows.num_rows:
            return
        report = _RowReporter(rows, self._report)
        report("`ends` do not partition `text` into sentences", ~_partitions(rows))
        sentences = _lengths(rows, "ends")
        for column, threshold in self._thresholds.items():
            scores, tags = _array(rows, column), _array(rows, tag_column(column))
            scored = ~_nulls(scores)
            report(f"`{column}` does not have one score per sentence", scored & (_lengths(rows, column) != sentences))
            report(f"`{column}` holds scores that are negative, NaN, infinite or null", _any(scores, ~_valid(scores)))
            expected = tags_of(scores, threshold)
            if not tags.equals(expected):
                differ = [one != other for one, other in zip(tags.to_pylist(), expected.to_pylist(), strict=True)]
                report(f"`{tag_column(column)}` is not `{column}` <= {threshold:.6g}", np.array(differ))
            if column in self._spans:
                for problem, wrong in wrong_spans(rows, column):
                    report(f"`{spans_column(column)}` {problem}", wrong)
        self._check_keys(rows, report)

    def _check_keys(self, rows: pa.Table, report: "_RowReporter") -> None:
        names = _array(rows, "source").dictionary_encode()
        order = np.array([self._order.get(name, -1) for name in names.dictionary.to_pylist()], dtype=np.int64)
        source = order[names.indices.to_numpy()]
        position = _array(rows, "position").to_numpy()
        report("its source is not among the inputs", source < 0)
        before_source = np.concatenate([[self._last[0]], source[:-1]])
        before_position = np.concatenate([[self._last[1]], position[:-1]])
        same = source == before_source
        report("the record occurs twice", same & (position == before_position))
        later = (source < before_source) | (same & (position < before_position))
        report("the record is not in the order of the inputs, or occurs twice", (source >= 0) & later)
        out = np.zeros(rows.num_rows, dtype=np.bool_)
        for index, name in enumerate(names.dictionary.to_pylist()):
            if name in self._quarantined:
                mine = names.indices.to_numpy() == index
                out |= mine & np.isin(position, self._quarantined[name])
        report("the record is also in quarantine", out)
        self._last = (int(source[-1]), int(position[-1]))


class _RowReporter:
    """Reports the rows of a mask by their keys."""

    def __init__(self, rows: pa.Table, report: Callable[[str, list[str]], None]) -> None:
        self._rows = rows
        self._report = report

    def __call__(self, what: str, rows: Mask) -> None:
        if rows.any():
            found = self._rows.select(["source", "position"]).filter(pa.array(rows))
            keys = zip(found["source"].to_pylist(), found["position"].to_pylist(), strict=True)
            self._report(what, [f"{source}#{position}" for source, position in keys])


def _partitions(rows: pa.Table) -> Mask:
    """Whether the ends of each row are strictly increasing, positive, and reach the end of the text."""
    ends = pc.fill_null(_array(rows, "ends").flatten(), -1).to_numpy().astype(np.int64)
    lengths = _lengths(rows, "ends")
    stops = np.cumsum(lengths)
    starts = stops - lengths
    before = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    filled = lengths > 0
    before[starts[filled]] = 0
    row = np.repeat(np.arange(rows.num_rows), lengths)
    increasing: Mask = np.bincount(row[ends <= before], minlength=rows.num_rows) == 0
    last = np.zeros(rows.num_rows, dtype=np.int64)
    last[filled] = ends[stops[filled] - 1]
    covered: Mask = last == pc.utf8_length(_array(rows, "text")).to_numpy()
    return increasing & covered


def _valid(scores: pa.ListArray) -> Mask:
    values = scores.flatten().to_numpy(zero_copy_only=False)
    valid: Mask = np.isfinite(values) & (values >= 0)
    return valid


def _any(lists: pa.ListArray, elements: Mask) -> Mask:
    """Whether each list has an element for which `elements`, a mask of all elements, is true."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(len(lists)), lengths)
    found: Mask = np.bincount(row[elements], minlength=len(lists)) > 0
    return found


def _array(rows: pa.Table, column: str) -> pa.Array:
    return rows.column(column).combine_chunks()


def _lengths(rows: pa.Table, column: str) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = pc.fill_null(pc.list_value_length(rows.column(column)), 0).to_numpy().astype(np.int64)
    return counts


def _nulls(array: pa.Array) -> Mask:
    nulls: Mask = array.is_null().to_numpy(zero_copy_only=False)
    return nulls
