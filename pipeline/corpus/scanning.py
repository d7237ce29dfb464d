"""Find the lines of a stream, many at a time: planning needs their offsets and sizes, not their content."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.streams import BOM, JSON_BLANKS, Readable

SCAN_CHUNK = 1 << 18

Offsets = NDArray[np.int64]


def scan_lines(stream: Readable, *, limit: int) -> Iterator[tuple[Offsets, Offsets]]:
    """Yield the lines that `read_lines` finds, as arrays of (offsets, sizes), both int64 [lines].

    Args:
        stream: a stream at its start.
        limit: as in `read_lines`; there as here a blank line over the limit counts as a record.

    Raises:
        CutError: after all lines that end before the cut.
    """
    offset = start = 0  # of the chunk, and of the line that is continued in it
    blank = True  # whether that line is blank so far
    while chunk := stream.read(SCAN_CHUNK):
        data = np.frombuffer(chunk, np.uint8)
        ends = np.flatnonzero(data == ord("\n")) + 1
        head = chunk[: ends[0]] if len(ends) else chunk
        blank = blank and not (head if offset else head.removeprefix(BOM)).strip(JSON_BLANKS)
        if len(ends):
            starts = np.concatenate([[start], ends[:-1] + offset])
            sizes = ends + offset - starts
            kept = np.ones(len(ends), np.bool_)
            kept[0] = not blank or sizes[0] > limit
            for line in np.flatnonzero(np.isin(data[ends[:-1]], _BLANKS)) + 1:
                content = chunk[ends[line - 1] : ends[line]]
                kept[line] = sizes[line] > limit or bool(content.strip(JSON_BLANKS))
            yield starts[kept], sizes[kept]
            start = offset + int(ends[-1])
            blank = not chunk[ends[-1] :].strip(JSON_BLANKS)
        offset += len(chunk)
    if offset > start and (not blank or offset - start > limit):
        yield np.array([start], np.int64), np.array([offset - start], np.int64)


_BLANKS = np.frombuffer(JSON_BLANKS, np.uint8)
