"""Read records of WARC files (ISO 28500), such as the WET files of Common Crawl, even if some are damaged.

This module finds where records begin and end; FastWARC parses each. FastWARC's own iterator takes a record with a
truncated header for an empty one, and stops at the first malformed record; here neither may happen silently.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from fastwarc.warc import WarcRecord

from pipeline.corpus.compression import TRUNCATED, CutError
from pipeline.corpus.inputs import Source
from pipeline.corpus.streams import CHUNK, Readable
from scorers.errors import UserError

# Types of records that describe other records or the file.
_ASIDE = frozenset({"warcinfo", "metadata", "request", "revisit"})
_DIGESTS = ("sha1:", "sha256:", "md5:")
_VERSION = b"WARC/"
_BLANK_LINE = b"\r\n\r\n"
_MOST_HEAD = 1 << 16
# Line ends and blank lines between records as in FastWARC (strict); in headers as in warcio.
_LINE_END = re.compile(rb"\r?\n")
_HEAD_END, _LONGEST_HEAD_END = re.compile(rb"\n\r?\n"), 3
_NEXT, _LONGEST_NEXT = re.compile(rb"\n(?=WARC/)"), 6
_BLANK_LINES = re.compile(rb"(?:[ \t]*\r?\n)*")
_PERHAPS_BLANK = re.compile(rb"[ \t]*\r?")
_MALFORMED = "its header is malformed"


@dataclass(frozen=True, slots=True)
class WarcEntry:
    """A record of a WARC file, or a stretch of bytes that is not a record.

    Attributes:
        size: size in bytes.
        kind: the WARC-Type in lower case; empty if this is not a record.
        headers: all headers, by name as written; bytes that are not UTF-8 are surrogate escapes.
        content: the block; None if it is longer than the limit, or if this is not a record.
        intact: whether the block matches its WARC-Block-Digest; true if there is no digest that can be checked.
        problem: why a stretch of bytes is not a record.
    """

    size: int
    kind: str = ""
    headers: dict[str, str] | None = None
    content: bytes | None = None
    intact: bool = True
    problem: str = ""


def read_warc(stream: Readable, *, limit: int) -> Iterator[WarcEntry]:
    """Yield the records of a WARC file in order, and the stretches that are not records; memory is bounded by `limit`.

    An entry is yielded only after the stream has been read beyond it, or has ended or been truncated there: if each
    record is a member of a gzip file, its checksum has then been verified, or been cut off.

    Args:
        stream: a stream at the start of the file's content.
        limit: the largest block, in bytes, that is kept in memory.

    Raises:
        CutError: after all records before the cut; a file that ends within a record is cut there.
    """
    window = _Window(stream)
    _skip_blank_lines(window)
    while window.fill(1):
        entry = _read_entry(window, limit)
        try:
            _skip_blank_lines(window)
        except CutError as error:
            # Damage may concern the record just read, whose checksum comes last; a truncation does not.
            if error.reason == TRUNCATED:
                yield entry
            raise
        yield entry


def read_documents(source: Source, stream: Readable, *, limit: int) -> Iterator[WarcEntry]:
    """Yield the records of a WET file that hold, or may have held, a text; see `read_warc`.

    Raises:
        UserError: the file holds web pages as fetched, not their text.
        CutError: see `read_warc`.
    """
    for entry in read_warc(stream, limit=limit):
        if entry.kind == "response":
            raise UserError(
                f"{source.uri} holds web pages as they were fetched (WARC records of type response), not their text. "
                "Take the crawl's text extracts (WET files, .warc.wet.gz), or extract the text into .jsonl first."
            )
        if entry.kind not in _ASIDE:
            yield entry


def _read_entry(window: "_Window", limit: int) -> WarcEntry:
    start = window.position
    end = window.find(_HEAD_END, _LONGEST_HEAD_END, _MOST_HEAD)
    head = window.peek(end[1]) if end else b""
    length = _length(head)
    if length is None:
        begins = _VERSION.startswith(window.peek(len(_VERSION)))
        if end is None and window.ended and begins and window.size < _MOST_HEAD:
            raise CutError(TRUNCATED, "the file ends within the header of a record")
        return _broken(window, start, "it does not begin with the header of a WARC record")
    if length > limit:
        window.skip(len(head))
        window.skip(length)
        if (behind := _separator(window, 0)) is None:
            return _broken(window, start, "its block is not as long as its header says")
        window.skip(behind)
        parsed = _parse(head, b"")
        if parsed is None:
            return WarcEntry(window.position - start, problem=_MALFORMED)
        return WarcEntry(window.position - start, parsed[0], parsed[1])
    if not window.fill(len(head) + length + len(_BLANK_LINE)) and window.size < len(head) + length:
        if window.find(_NEXT, _LONGEST_NEXT, window.size) is None:
            raise CutError(TRUNCATED, "the file ends within a record")
        return _broken(window, start, "its block is longer than the rest of the file")
    size = len(head) + length
    block = window.peek(length, len(head))
    if (behind := _separator(window, size)) is None:
        return _broken(window, start, "its block is not as long as its header says")
    parsed = _parse(head, block)
    window.skip(size + behind)
    if parsed is None:
        return WarcEntry(window.position - start, problem=_MALFORMED)
    kind, headers, intact = parsed
    return WarcEntry(window.position - start, kind, headers, block, intact)


def _separator(window: "_Window", at: int) -> int | None:
    """The number of separator bytes after a block that ends at offset `at`; None if there is no separator.

    The format requires a blank line. Less is accepted if the next record begins there or the file ends.
    """
    size, lines = _blank_lines(window, at, enough=2)
    if lines < 2 and window.fill(at + size + 1):
        window.fill(at + size + len(_VERSION))
        return size if window.peek(len(_VERSION), at + size) == _VERSION else None
    return size


def _skip_blank_lines(window: "_Window") -> None:
    """Skip blank lines between records, and blanks at the end of the file."""
    while size := _blank_lines(window, 0)[0]:
        window.skip(size)


def _blank_lines(window: "_Window", at: int, enough: int = _MOST_HEAD) -> tuple[int, int]:
    """The size in bytes, and the number, of blank lines (or final blanks) from `at` on; perhaps not all of them."""
    wanted = len(_BLANK_LINE)
    while True:
        window.fill(at + wanted)
        data = window.peek(wanted, at)
        size = _matched(_BLANK_LINES, data)
        lines, rest = data.count(b"\n", 0, size), data[size:]
        may_go_on = _matched(_PERHAPS_BLANK, rest) == len(rest)
        if may_go_on and len(data) < wanted:
            return len(data), lines
        if not may_go_on or lines >= enough or wanted >= _MOST_HEAD:
            return size, lines
        wanted *= 4


def _matched(pattern: re.Pattern[bytes], data: bytes) -> int:
    """The length of the match at the start of `data`; 0 if there is none."""
    found = pattern.match(data)
    return found.end() if found else 0


def _broken(window: "_Window", start: int, problem: str) -> WarcEntry:
    """Skip to the next line that begins a record, and return what was skipped."""
    window.fill(1)
    if window.position == start:
        window.skip(1)
    while (at := window.find(_NEXT, _LONGEST_NEXT, CHUNK)) is None and window.size >= CHUNK:
        window.skip(CHUNK - _LONGEST_NEXT + 1)
    window.skip(at[1] if at else window.size)
    return WarcEntry(window.position - start, problem=problem)


def _length(head: bytes) -> int | None:
    """The length of the block according to a header; None if `head` is not the header of a record."""
    if not head.startswith(_VERSION):
        return None
    lengths = [
        value.strip()
        for name, separator, value in (line.partition(b":") for line in _LINE_END.split(head)[1:])
        if separator and name.strip().lower() == b"content-length"
    ]
    return int(lengths[0]) if len(lengths) == 1 and lengths[0].isdigit() and len(lengths[0]) < 19 else None


def _parse(head: bytes, block: bytes) -> tuple[str, dict[str, str], bool] | None:
    """Type, headers, and whether the digest matches; None if the header is malformed."""
    try:
        parsed = WarcRecord.from_bytes(_LINE_END.sub(b"\r\n", head) + block + _BLANK_LINE)
    except (OSError, ValueError):
        return None
    headers = {
        name.decode(errors="surrogateescape"): value.decode(errors="surrogateescape")
        for name, value in parsed.headers.items_bytes()
    }
    kind = next((value for name, value in headers.items() if name.lower() == "warc-type"), "")
    digest = next((value for name, value in headers.items() if name.lower() == "warc-block-digest"), "")
    return kind.lower(), headers, not digest.lower().startswith(_DIGESTS) or parsed.verify_block_digest()


class _Window:
    """A buffer over a stream: the bytes from the current position on that have been requested."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._bytes = bytearray()
        self._at = 0
        self.position = 0
        self.ended = False

    @property
    def size(self) -> int:
        """The number of buffered bytes."""
        return len(self._bytes) - self._at

    def fill(self, size: int) -> bool:
        """Buffer at least `size` bytes; false if the stream ends first."""
        while self.size < size and not self.ended:
            if self._at >= CHUNK:
                del self._bytes[: self._at]
                self._at = 0
            data = self._stream.read(max(CHUNK, min(size - self.size, CHUNK * 16)))
            self._bytes += data
            self.ended = not data
        return self.size >= size

    def find(self, mark: re.Pattern[bytes], longest: int, within: int) -> tuple[int, int] | None:
        """Find a mark of at most `longest` bytes in the next `within` bytes, buffering no more than needed."""
        size = 0
        while True:
            found = mark.search(self._bytes, self._at + max(0, size - longest), self._at + within)
            if found is not None:
                return found.start() - self._at, found.end() - self._at
            size = self.size
            if size >= within or (not self.fill(min(within, size + CHUNK)) and self.size == size):
                return None

    def peek(self, size: int, at: int = 0) -> bytes:
        """Up to `size` buffered bytes from offset `at` on."""
        return bytes(self._bytes[self._at + at : self._at + at + size])

    def skip(self, size: int) -> None:
        """Skip `size` bytes, buffered or not.

        Raises:
            CutError: the stream ends first.
        """
        while size:
            if not self.fill(1):
                raise CutError(TRUNCATED, "the file ends within a record")
            step = min(size, self.size)
            self._at += step
            self.position += step
            size -= step
