"""Records of WARC files (ISO 28500), such as the WET files of Common Crawl, however damaged some of them are.

Where records begin and end is found here, and FastWARC reads what lies between. Its own iterator takes a record whose
head is cut off for an empty one, and ends at the first malformed one with all that comes after; neither may happen in
silence here.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fastwarc.warc import WarcRecord

from pipeline.corpus.inputs import Source
from pipeline.corpus.streams import CHUNK, TRUNCATED, CutError, Readable
from scorers.errors import UserError

# About other records, or about the file.
_ASIDE = frozenset({"warcinfo", "metadata", "request", "revisit"})
_DIGESTS = ("sha1:", "sha256:", "md5:")
_VERSION = b"WARC/"
_BLANK_LINE = b"\r\n\r\n"
_NEXT = b"\r\n" + _VERSION
_MOST_HEAD = 1 << 16
_MALFORMED = "its head is malformed"


@dataclass(frozen=True, slots=True)
class WarcEntry:
    """A record of a WARC file, or a stretch of it that is none.

    Attributes:
        size: bytes of it.
        kind: the WARC-Type in lower case; empty for what is no record.
        headers: the others too, by name as written; bytes that are not UTF-8 are surrogate escapes.
        content: its block, None where that is longer than the limit, or where this is no record.
        intact: whether the block is what its WARC-Block-Digest says; true where none can be checked.
        problem: what is wrong with a stretch that is no record.
    """

    size: int
    kind: str = ""
    headers: dict[str, str] | None = None
    content: bytes | None = None
    intact: bool = True
    problem: str = ""


def read_warc(stream: Readable, *, limit: int) -> Iterator[WarcEntry]:
    """The records of a WARC file in order, in memory bounded by `limit`, and what lies between them that is none.

    An entry is yielded once the stream goes on behind it, or ends there well or for want of bytes: where each record is
    a member of a gzip file, its checksum has then been found right, or been cut off.

    Args:
        stream: at the start of the file's content.
        limit: the most bytes a block may have to be held.

    Raises:
        CutError: after all records before the cut; a file that ends within a record is cut there.
    """
    window = _Window(stream)
    while window.fill(1):
        entry = _read_entry(window, limit)
        try:
            window.fill(1)
        except CutError as error:
            # What is damaged may be the record just read, whose checksum comes last; what is cut off is not.
            if error.reason == TRUNCATED:
                yield entry
            raise
        yield entry


def read_documents(source: Source, stream: Readable, *, limit: int) -> Iterator[WarcEntry]:
    """The records of a WET file that hold, or may have held, a text; see `read_warc`.

    Raises:
        UserError: the file holds pages as they were fetched, not their text.
        CutError: as `read_warc`.
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
    end = window.find(_BLANK_LINE, _MOST_HEAD)
    head = window.peek(end + len(_BLANK_LINE)) if end >= 0 else b""
    length = _length(head)
    if length is None:
        begins = _VERSION.startswith(window.peek(len(_VERSION)))
        if end < 0 and window.ended and begins and window.size < _MOST_HEAD:
            raise CutError(TRUNCATED, "the file ends within the head of a record")
        return _broken(window, start, "it does not begin with the head of a WARC record")
    if length > limit:
        window.skip(len(head))
        window.skip(length)
        if not _close(window):
            return _broken(window, start, "its block is not as long as its head says")
        parsed = _parse(head + _BLANK_LINE)
        if parsed is None:
            return WarcEntry(window.position - start, problem=_MALFORMED)
        return WarcEntry(window.position - start, parsed[0], parsed[1])
    if not window.fill(len(head) + length + len(_BLANK_LINE)) and window.size < len(head) + length:
        if window.find(_NEXT, window.size) < 0:
            raise CutError(TRUNCATED, "the file ends within a record")
        return _broken(window, start, "its block is longer than the rest of the file")
    record = window.peek(len(head) + length)
    behind = window.peek(len(record) + len(_BLANK_LINE))[len(record) :]
    if behind != _BLANK_LINE and not (window.ended and _BLANK_LINE.startswith(behind)):
        return _broken(window, start, "its block is not as long as its head says")
    parsed = _parse(record + _BLANK_LINE)
    window.skip(len(record) + len(behind))
    if parsed is None:
        return WarcEntry(window.position - start, problem=_MALFORMED)
    kind, headers, intact = parsed
    return WarcEntry(window.position - start, kind, headers, record[len(head) :], intact)


def _close(window: "_Window") -> bool:
    """Skip the blank line behind a block; false where there is another thing."""
    window.fill(len(_BLANK_LINE))
    behind = window.peek(len(_BLANK_LINE))
    if behind != _BLANK_LINE and not (window.ended and _BLANK_LINE.startswith(behind)):
        return False
    window.skip(len(behind))
    return True


def _broken(window: "_Window", start: int, problem: str) -> WarcEntry:
    """Skip to the next line that begins a record."""
    window.fill(1)
    if window.position == start:
        window.skip(1)
    while (at := window.find(_NEXT, CHUNK)) < 0 and window.size >= CHUNK:
        window.skip(CHUNK - len(_NEXT) + 1)
    window.skip(at + 2 if at >= 0 else window.size)
    return WarcEntry(window.position - start, problem=problem)


def _length(head: bytes) -> int | None:
    """The length of the block that a head announces; None where it is no head of a record."""
    if not head.startswith(_VERSION):
        return None
    lengths = [
        value.strip()
        for name, separator, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
        if separator and name.strip().lower() == b"content-length"
    ]
    return int(lengths[0]) if len(lengths) == 1 and lengths[0].isdigit() and len(lengths[0]) < 19 else None


def _parse(record: bytes) -> tuple[str, dict[str, str], bool] | None:
    """Type, headers, and whether the digest is right; None where the head is malformed."""
    try:
        parsed = WarcRecord.from_bytes(record)
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
    """The bytes of a stream from the current position on, as far as they were asked for."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._bytes = bytearray()
        self._at = 0
        self.position = 0
        self.ended = False

    @property
    def size(self) -> int:
        """Bytes that are held."""
        return len(self._bytes) - self._at

    def fill(self, size: int) -> bool:
        """Hold at least so many bytes; false where the stream ends before."""
        while self.size < size and not self.ended:
            if self._at >= CHUNK:
                del self._bytes[: self._at]
                self._at = 0
            data = self._stream.read(max(CHUNK, min(size - self.size, CHUNK * 16)))
            self._bytes += data
            self.ended = not data
        return self.size >= size

    def find(self, mark: bytes, within: int) -> int:
        """Where a mark begins in the next bytes, -1 for nowhere; more of them are held only while it is not found."""
        size = 0
        while True:
            found = self._bytes.find(mark, self._at + max(0, size - len(mark)), self._at + within)
            size = self.size
            if found >= 0 or size >= within or (not self.fill(min(within, size + CHUNK)) and self.size == size):
                return found - self._at if found >= 0 else -1

    def peek(self, size: int) -> bytes:
        """Up to so many of the bytes that are held."""
        return bytes(self._bytes[self._at : self._at + size])

    def skip(self, size: int) -> None:
        """Go on behind so many bytes, held or not.

        Raises:
            CutError: the stream ends before.
        """
        while size:
            if not self.fill(1):
                raise CutError(TRUNCATED, "the file ends within a record")
            step = min(size, self.size)
            self._at += step
            self.position += step
            size -= step
