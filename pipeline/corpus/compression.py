"""Compressed streams: members and frames one after the other, and exactly where one ends that cannot be read.

What follows a complete member is judged as the format's own program judges it: further members are read, zeros behind
gzip and xz and skippable frames of zstd are passed over. Anything else is a cut: no byte is left out in silence.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import zstandard

from scorers.errors import UserError
from scorers.paths import shown

Compression = Literal["gzip", "zstd", "bz2", "xz"]

TRUNCATED = "truncated-source"
UNREADABLE = "unreadable-source"

# The largest window of zstd that is decoded (`--long=31`), and so the memory that a reader may take for it.
MOST_WINDOW = 1 << 31
# Raw bytes that a decompressor gets at a time: some hundred may stand for many megabytes.
_STEP = 128
_CHUNK = 1 << 16
_PIECE = 1 << 18
LONGEST_HEAD = 18  # bytes that say what a member or frame is, and which window it needs
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# Of the head of a zstd frame (RFC 8878, 3.1.1.1): magic, flags and window; and the flag that there is no window.
_SHORTEST_HEAD, _SINGLE_SEGMENT = 6, 0x20


class CutError(Exception):
    """The rest of a source cannot be read, now or at any later time; `reason` and `detail` as in `Quarantined`.

    `read` bytes of the source were read well before that; None where nobody knows.
    """

    def __init__(self, reason: str, detail: str, read: int | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.read = read


class _Member(Protocol):
    """A decompressor of one member, as zlib, bz2, lzma and zstandard have it."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: Any, /) -> bytes: ...


class _Raw(Protocol):
    def read(self, size: int, /) -> bytes: ...


def begins(compression: Compression, head: bytes) -> bool:
    """Whether bytes begin a compressed stream, or may where they are few."""
    return any(head.startswith(magic) or magic.startswith(head) for magic in _CODECS[compression].magic)


def decompressed(raw: _Raw, compression: Compression, uri: str) -> Iterator[bytes]:
    """The content of a stream in pieces; all of it before a truncation.

    Damage is noticed late, and a checksum comes last: what a damaged member gave since the last piece is left out.

    Raises:
        CutError: it is empty, truncated or damaged, or something else stands behind its last member.
        UserError: it needs a larger window than is decoded, or a dictionary.
    """
    codec = _CODECS[compression]
    source = _Source(raw)
    members = 0
    pieces: list[bytes] = []
    held = complete = 0  # bytes of the pieces, and how many of these belong to members that are complete
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
                held += len(piece)
                pieces.append(piece)
                if held >= _PIECE:
                    yield b"".join(pieces)
                    pieces, held, complete, safe = [], 0, 0, source.position
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
        what = "what stands behind its last whole part is" if members else "it is"
        raise CutError(UNREADABLE, f"{what} not {compression}, from byte {source.position} on", source.position)


class _Source:
    """Raw bytes that were read and not used yet, and the position of the first of them."""

    def __init__(self, raw: _Raw) -> None:
        self._raw = raw
        self.data = memoryview(b"")
        self.position = 0

    def fill(self, size: int) -> bool:
        """Hold at least so many bytes, or what there is; false where there is nothing."""
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
    """Bytes of the window that a frame of zstd needs, by its first 18 bytes; 0 where they are no such head."""
    if not head.startswith(_ZSTD_MAGIC) or len(head) < _SHORTEST_HEAD:
        return 0
    if not head[4] & _SINGLE_SEGMENT:
        # The library refuses to parse the head of a frame whose window is longer than it decodes.
        base = 1 << (10 + (head[5] >> 3))
        return base + (base >> 3) * (head[5] & 7)
    try:
        return int(zstandard.get_frame_parameters(head).window_size)
    except zstandard.ZstdError:  # too short
        return 0


def _dictionary_of(head: bytes) -> int:
    if not head.startswith(_ZSTD_MAGIC):  # a skippable frame, of which the library takes other bytes for this
        return 0
    try:
        return int(zstandard.get_frame_parameters(head).dict_id)
    except zstandard.ZstdError:  # too short, or no frame
        return 0


def _open_zstd(head: bytes, uri: str) -> _Member:
    window = window_of(head)
    if window > MOST_WINDOW:
        raise UserError(
            f"{shown(uri)} needs a window of {window / 2**30:.3g} GiB, and phf decodes zstd up to "
            f"{MOST_WINDOW >> 30} GiB. Recompress it with a smaller one: zstd -dc --memory={window >> 20}MiB FILE | "
            "zstd --long=27."
        )
    if _dictionary_of(head):
        raise UserError(
            f"{shown(uri)} is compressed with a dictionary of zstd, which phf does not read. Recompress it without: "
            "zstd -dc -D DICTIONARY FILE | zstd."
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
