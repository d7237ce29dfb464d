"""Preference tags: a sentence is aligned when its score is at most the column's threshold."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.hashing import Hashes, combine, splitmix64, uniform
from pipeline.dataset.schema import ALIGNED_SUFFIX, ROW_FIELDS, dataset_schema, spans_column

ALIGNED = "<|aligned|>"
MISALIGNED = "<|misaligned|>"

# The salt of dropped tags: other choices from the same seed are independent of this one.
_DROPPED_TAG = 2


def is_aligned(scores: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Whether each score is <= `threshold`, compared as float32.

    The thresholds of a manifest are float32 numbers, so comparing in float32 or in float64 gives the same tags.
    """
    return scores <= np.float32(threshold)


def document_limit(threshold: float) -> float:
    """Return the limit for document means, float64, so that a mean equal to the threshold as float32 is aligned.

    Without this, at threshold 0.1 a document of one sentence with score float32(0.1) would be misaligned as a document
    but aligned as a sentence.
    """
    return max(threshold, float(np.float32(threshold)))


def keeps_tag(
    text_hashes: Hashes, counts: NDArray[np.int64], numbers: NDArray[np.int64], drop_tags: float, seed: int
) -> NDArray[np.bool_]:
    """Whether each sentence keeps its control token, bool [sentences]; the others train a model to do without.

    Args:
        text_hashes: uint64 [documents], `pipeline.dataset.derived.text_hash` of each document's text.
        counts: int64 [documents], how many of the sentences are of each document, in order.
        numbers: int64 [sentences], of each sentence in its document, from 0.
        drop_tags: share of sentences without a control token.
        seed: of the choice.
    """
    keys = np.repeat(combine(seed, _DROPPED_TAG, text_hashes), counts)
    return uniform(splitmix64(keys ^ numbers.astype(np.uint64))) >= drop_tags


def add_tags(
    rows: pa.Table, columns: Sequence[str], thresholds: Mapping[str, float], spans: Collection[str] = ()
) -> pa.Table:
    """Convert rows of `unit_schema` to `dataset_schema`; tags are null where the scores are null."""
    arrays = [rows.column(field.name).combine_chunks() for field in ROW_FIELDS]
    for column in columns:
        scores = rows.column(column).combine_chunks()
        arrays += [scores, tags_of(scores, thresholds[column])]
        if column in spans:
            arrays.append(rows.column(spans_column(column)).combine_chunks())
    return pa.Table.from_arrays(arrays, schema=dataset_schema(columns, spans))


def tags_of(scores: pa.ListArray, threshold: float) -> pa.ListArray:
    """The list<bool> tags of a list<float32> score column, with the same lengths and nulls."""
    lengths = pc.fill_null(pc.list_value_length(scores), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    aligned = is_aligned(scores.flatten().to_numpy(zero_copy_only=False), threshold)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(aligned), mask=scores.is_null())


def tag_column(column: str) -> str:
    """The name of a score column's tags."""
    return column + ALIGNED_SUFFIX
