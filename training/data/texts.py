"""Read a labelled dataset for tokenising, a batch at a time: sentences, hashes of texts, and scores."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset import LabelledDataset

# Small, because a document may be megabytes long.
_ROWS = 256
# A tokenizer's output takes about a hundred times the memory of its text.
_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Texts:
    """Some rows of a dataset, in order.

    Attributes:
        batch: columns `text`, `ends` and scores.
    """

    batch: pa.RecordBatch

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    @cached_property
    def text_bytes(self) -> NDArray[np.int64]:
        """int64 [rows], length of each text in UTF-8 bytes."""
        return np.diff(self._text_offsets)

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        """uint64 [rows], the first 8 bytes, little-endian, of BLAKE2b-64 of each UTF-8 text."""
        content = memoryview(self.batch.column("text").buffers()[2] or b"")
        offsets = self._text_offsets.tolist()
        digests = (
            hashlib.blake2b(content[start:end], digest_size=8).digest() for start, end in itertools.pairwise(offsets)
        )
        return np.frombuffer(b"".join(digests), dtype="<u8")

    @cached_property
    def sentence_counts(self) -> NDArray[np.int64]:
        """int64 [rows], number of sentences in each text."""
        return np.diff(self._end_offsets)

    def select(self, chosen: NDArray[np.bool_]) -> "Texts":
        """Return the rows where `chosen` [rows] is true."""
        return Texts(self.batch.filter(pa.array(chosen)))

    def sentence_lists(self, characters: int = _CHARACTERS) -> Iterator[tuple[list[str], NDArray[np.bool_]]]:
        """Yield all sentences in order, in lists of about `characters` characters or a single sentence.

        Each comes with a mask, bool [sentences], of those that are the first of their text.
        """
        ends = self.batch.column("ends").values.to_numpy()
        bounds = self._end_offsets.tolist()
        pending: list[str] = []
        begins: list[int] = []
        size = 0
        for row, text in enumerate(self.batch.column("text")):
            document, own = text.as_py(), ends[bounds[row] : bounds[row + 1]]
            # Where to cut a long document.
            cuts = np.searchsorted(own, np.arange(characters, len(document), characters)).tolist()
            places = [0, *own.tolist()]
            for first, last in zip([0, *cuts], [*cuts, len(own)], strict=True):
                if first == 0 < last:
                    begins.append(len(pending))
                pending += [document[places[i] : places[i + 1]] for i in range(first, last)]
                size += places[last] - places[first]
                if size >= characters:
                    yield pending, _mark(begins, len(pending))
                    pending, begins, size = [], [], 0
        if pending:
            yield pending, _mark(begins, len(pending))

    def scores(self, column: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return the scores of all sentences, and their means by document.

        Returns:
            float32 [sentences], NaN in rows where the column is null; float64 [rows], NaN where it is null, 0 in rows
            without sentences.

        Raises:
            ValueError: a row's scores do not match its sentences.
        """
        lists = self.batch.column(column)
        valid = lists.is_valid().to_numpy(zero_copy_only=False)
        counts = self.sentence_counts
        if not np.array_equal(lists.value_lengths().drop_null().to_numpy(), counts[valid]):
            raise ValueError("a row does not have exactly one score per sentence")
        row = np.repeat(np.arange(len(self)), counts)
        values = np.full(len(row), np.nan, dtype=np.float32)
        values[valid[row]] = lists.flatten().to_numpy(zero_copy_only=False)
        means = np.bincount(row, weights=values, minlength=len(self)) / np.maximum(counts, 1)
        means[~valid] = np.nan
        return values, means

    @cached_property
    def _text_offsets(self) -> NDArray[np.int64]:
        array = self.batch.column("text")
        offsets = np.frombuffer(array.buffers()[1] or bytes(8), dtype=np.int64)
        return offsets[array.offset : array.offset + len(array) + 1]

    @cached_property
    def _end_offsets(self) -> NDArray[np.int64]:
        return np.asarray(self.batch.column("ends").offsets, dtype=np.int64)


def is_text(decoded: str, text_hash: int, text_bytes: int, *, prefixed: bool) -> bool:
    """Whether a decoded text has this hash and length in UTF-8 bytes (see `Texts`).

    With `prefixed`, the original may also begin with one space more.
    """
    content = decoded.encode()
    if prefixed and len(content) + 1 == text_bytes:
        content = b" " + content
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") == text_hash


def _mark(places: list[int], size: int) -> NDArray[np.bool_]:
    marks = np.zeros(size, dtype=np.bool_)
    marks[places] = True
    return marks


def read_texts(dataset: LabelledDataset, columns: Sequence[str] = ()) -> Iterator[Texts]:
    """Yield all rows of a dataset, with these score columns.

    Raises:
        UserError: a shard is damaged.
    """
    for batch in dataset.read_batches(["text", "ends", *columns], rows=_ROWS):
        yield Texts(batch)
