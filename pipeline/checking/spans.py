"""Check the spans of rows: inside sentences with a score above 0, sorted, with types that can be shown."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.schema import spans_column
from scorers.spans import LONGEST_TYPE, is_type

Mask = NDArray[np.bool_]


def wrong_spans(rows: pa.Table, column: str) -> Iterator[tuple[str, Mask]]:
    """Yield what is wrong with the spans of a score column, and in which rows: bool [rows].

    Args:
        rows: of `dataset_schema`, each column in one chunk; `ends` and scores may be wrong too.
        column: has spans.
    """
    spans, scores, ends = (rows.column(name).combine_chunks() for name in (spans_column(column), column, "ends"))
    nulls, unscored = _nulls(spans), _nulls(scores)
    yield "is not null exactly where the scores are", nulls != unscored
    row = _rows_of(spans)
    found = spans.flatten()
    parts = {name: found.field(name) for name in ("start", "end", "type", "score")}
    gone = np.any([_nulls(found), *(_nulls(each) for each in parts.values())], axis=0)
    yield "has spans without a start, an end, a type or a score", _any(row, gone, len(spans))
    start, end = (_numbers(parts[name], -1) for name in ("start", "end"))
    # Sentences of all rows on one axis, each row as long as its text and one more.
    lengths = np.maximum(pc.utf8_length(rows.column("text")).to_numpy().astype(np.int64), 0)
    base = np.cumsum(lengths + 1) - (lengths + 1)
    inside = (start >= 0) & (start < end) & (end <= lengths[row])
    sentence_rows = _rows_of(ends)
    sentence_ends = np.clip(_numbers(ends.flatten(), 0), 0, lengths[sentence_rows]) + base[sentence_rows]
    # Ends that are wrong are reported on their own.
    sentence_ends = np.maximum.accumulate(sentence_ends) if len(sentence_ends) else sentence_ends
    sentence = np.searchsorted(sentence_ends, base[row] + np.clip(start, 0, lengths[row]), side="right")
    within = np.zeros(len(row), dtype=np.bool_)
    known = sentence < len(sentence_ends)
    at = sentence[known]
    within[known] = (sentence_rows[at] == row[known]) & (sentence_ends[at] >= base[row[known]] + end[known])
    yield "has spans that are empty or not inside a sentence", _any(row, ~gone & ~(inside & within), len(spans))
    counts, wanted = _lengths(scores), _lengths(ends)
    if not ((counts == wanted) | unscored).all():
        return  # scores that do not match the sentences are reported on their own
    values = np.zeros(len(sentence_rows), dtype=np.float32)
    values[~unscored[sentence_rows]] = _floats(scores.flatten())
    fine = within & inside
    clean = np.zeros(len(row), dtype=np.bool_)
    clean[fine] = ~(values[sentence[fine]] > 0)
    yield "has spans in sentences whose score is not above 0", _any(row, clean, len(spans))
    same = row[1:] == row[:-1]
    falls = (start[1:] < start[:-1]) | ((start[1:] == start[:-1]) & (end[1:] < end[:-1]))
    yield "is not sorted", _any(row[1:], same & falls, len(spans))
    kinds = parts["type"].dictionary_encode()
    bad = np.array([not is_type(each) for each in kinds.dictionary.to_pylist()] + [False], dtype=np.bool_)
    yield (
        f"has types that are not 1 to {LONGEST_TYPE} printable characters without braces",
        _any(row, bad[_numbers(kinds.indices, -1)] & ~gone, len(spans)),
    )
    weights = _floats(parts["score"])
    yield (
        "has scores that are negative, NaN or infinite",
        _any(row, ~gone & ~(np.isfinite(weights) & (weights >= 0)), len(spans)),
    )


def _rows_of(lists: pa.ListArray) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(lists)), _lengths(lists))


def _lengths(lists: pa.ListArray) -> NDArray[np.int64]:
    return _numbers(pc.list_value_length(lists), 0)


def _numbers(values: pa.Array, null: int) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = pc.fill_null(values, null).to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers


def _floats(values: pa.Array) -> NDArray[np.float32]:
    floats: NDArray[np.float32] = values.to_numpy(zero_copy_only=False).astype(np.float32)
    return floats


def _nulls(array: pa.Array) -> Mask:
    nulls: Mask = array.is_null().to_numpy(zero_copy_only=False)
    return nulls


def _any(row: NDArray[np.int64], elements: Mask, rows: int) -> Mask:
    """Whether each row has an element for which `elements` is true; `row` is that of each element."""
    found: Mask = np.bincount(row[elements], minlength=rows) > 0
    return found
