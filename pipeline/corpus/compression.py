"""Decompress streams of several members or frames, and find exactly where a damaged one stops being readable.

What follows a complete member is treated as the format's own program treats it: further members are read; zero padding
of gzip and xz and skippable frames of zstd are skipped. Anything else is a cut: no byte is dropped silently.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import zstandard

from scorers.errors import UserError
from scorers.paths import escape_path

Compression = Literal["gzip", "zstd", "bz2", "xz"]

TRUNCATED = "truncated-source"
UNREADABLE = "unreadable-source"

# The largest zstd window that is decoded (`--long=31`), and so the memory that a reader may use for it.
MOST_WINDOW = 1 << 31
# Raw bytes given to a decompressor at a time: a few hundred can expand to many megabytes.
_STEP = 128
_CHUNK = 1 << 16
_PIECE = 1 << 18
LONGEST_HEAD = 18  # bytes that identify a member or frame and state the window it needs
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# The header of a zstd frame (RFC 8878, 3.1.1.1): size of magic, flags and window; the flag for "no window".
_SHORTEST_HEAD, _SINGLE_SEGMENT = 6, 0x20


class CutError(Exception):
    """The rest of a source is permanently unreadable; `reason` and `detail` as in `Quarantined`.

    `read` is the number of bytes of the source before the damage; None if unknown.
    """

    def __init__(self, reason: str, detail: str, read: int | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.read = read


class _Member(Protocol):
    """A decompressor of one member, with the interface that zlib, bz2, lzma and zstandard share."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: Any, /) -> bytes: ...


class _Raw(Protocol):
    def read(self, size: int, /) -> bytes: ...


def begins(compression: Compression, head: bytes) -> bool:
    """Whether `head` begins a compressed stream, or is too short to decide."""
    return any(head.startswith(magic) or magic.startswith(head) for magic in _CODECS[compression].magic)


def decompressed(raw: _Raw, compression: Compression, uri: str) -> Iterator[bytes]:
    """Yield the content of a stream in pieces, up to the last byte before a truncation.

    Damage is noticed late, and a checksum comes last: the output of a damaged member since the last piece is dropped.

    Raises:
        CutError: the stream is empty, truncated or damaged, or foreign data follow its last member.
        UserError: the stream needs a dictionary or a window over `MOST_WINDOW`.
    """
    codec = _CODECS[compression]
    source = _Source(raw)
    members = 0
    pieces: list[bytes] = []
    size = complete = 0  # bytes of the pieces; how many pieces belong to complete members
    try:
        while source.fill(LONGEST_HEAD) or not members:
            if members and codec.padded:
                source.skip_zeros()
                if not source.data:
                    break
            _check_head(compression, source, members)
            member = codec.open(bytes(source.data[:LONGEST_HEAD]), uri)
            safe = source.position
            while not member.eof:
                if not source.fill(1):
                    raise CutError(TRUNCATED, "the compressed stream ends before its end mark", source.position)
                step = source.data[:_STEP]
                try:
                    piece = member.decompress(step)
                except _ERRORS:
                    del pieces[complete:]
                    where = source.position + len(step)
                    what = f"the compressed stream is damaged before byte {where}"
                    raise CutError(UNREADABLE, what, safe) from None
                source.skip(len(step) - len(member.unused_data))
                size += len(piece)
                pieces.append(piece)
                if size >= _PIECE:
                    yield b"".join(pieces)
                    pieces, size, complete, safe = [], 0, 0, source.position
            members += 1
            complete = len(pieces)
    except CutError:
        yield b"".join(pieces)
        raise
    yield b"".join(pieces)


def _check_head(compression: Compression, source: "_Source", members: int) -> None:
    if not source.data:
        raise CutError(TRUNCATED, "the file is empty", 0)
    if not begins(compression, bytes(source.data[:LONGEST_HEAD])):
        what = "the data after its last complete part is" if members else "it is"
        raise CutError(UNREADABLE, f"{what} not {compression}, from byte {source.position} on", source.position)


class _Source:
    """A buffer of raw bytes not consumed yet, and the position of the first of them."""

    def __init__(self, raw: _Raw) -> None:
        self._raw = raw
        self.data = memoryview(b"")
        self.position = 0

    def fill(self, size: int) -> bool:
        """Buffer at least `size` bytes, or all that are left; false if there are none."""
        while len(self.data) < size and (more := self._raw.read(_CHUNK)):
            self.data = memoryview(bytes(self.data) + more)
        return bool(self.data)

    def skip(self, size: int) -> None:
        self.data = self.data[size:]
        self.position += size

    def skip_zeros(self) -> None:
        while self.fill(1):
            zeros = len(self.data) - len(bytes(self.data).lstrip(b"\0"))
            self.skip(zeros)
            if self.data:
                return


def window_of(head: bytes) -> int:
    """The window in bytes that a zstd frame needs, by its first 18 bytes; 0 if they are not a frame header."""
    if not head.startswith(_ZSTD_MAGIC) or len(head) < _SHORTEST_HEAD:
        return 0
    if not head[4] & _SINGLE_SEGMENT:
        # The library refuses to parse the header of a frame whose window exceeds its own limit.
        base = 1 << (10 + (head[5] >> 3))
        return base + (base >> 3) * (head[5] & 7)
    try:
        return int(zstandard.get_frame_parameters(head).window_size)
    except zstandard.ZstdError:  # too short
        return 0


def _dictionary_of(head: bytes) -> int:
    if not head.startswith(_ZSTD_MAGIC):  # a skippable frame: the library would misread other bytes as the id
        return 0
    try:
        return int(zstandard.get_frame_parameters(head).dict_id)
    except zstandard.ZstdError:  # too short, or no frame
        return 0


def _open_zstd(head: bytes, uri: str) -> _Member:
    window = window_of(head)
    if window > MOST_WINDOW:
        raise UserError(
            f"{escape_path(uri)} needs a window of {window / 2**30:.3g} GiB, and phf decodes zstd up to "
            f"{MOST_WINDOW >> 30} GiB. Recompress it with a smaller one: zstd -dc --memory={window >> 20}MiB FILE | "
            "zstd --long=27."
        )
    if _dictionary_of(head):
        raise UserError(
            f"{escape_path(uri)} is compressed with a zstd dictionary, which phf does not support. Recompress it "
            "without: zstd -dc -D DICTIONARY FILE | zstd."
        )
    found: _Member = zstandard.ZstdDecompressor(max_window_size=MOST_WINDOW).decompressobj()
    return found


@dataclass(frozen=True)
class _Codec:
    magic: tuple[bytes, ...]
    open: Callable[[bytes, str], _Member]
    padded: bool = False


_CODECS: dict[Compression, _Codec] = {
    "gzip": _Codec((b"\x1f\x8b",), lambda _head, _uri: zlib.decompressobj(31), padded=True),
    "zstd": _Codec((_ZSTD_MAGIC, *(bytes([0x50 + low]) + b"\x2a\x4d\x18" for low in range(16))), _open_zstd),
    "bz2": _Codec((b"BZh",), lambda _head, _uri: bz2.BZ2Decompressor()),
    "xz": _Codec((b"\xfd7zXZ\0",), lambda _head, _uri: lzma.LZMADecompressor(lzma.FORMAT_XZ, MOST_WINDOW), padded=True),
}
_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
