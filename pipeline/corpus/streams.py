"""Bytes of a source: decompressed up to where a damaged stream ends, and cut into lines."""

import io
from collections.abc import Callable, Iterator
from typing import Protocol

import pyarrow as pa

from pipeline.corpus.inputs import Compression, Source, open_source

TRUNCATED = "truncated-source"
UNREADABLE = "unreadable-source"

CHUNK = 1 << 16
_MOST_AT_ONCE = 1 << 26
BOM = b"\xef\xbb\xbf"
JSON_BLANKS = b" \t\r\n"


class CutError(Exception):
    """The rest of a source cannot be read, now or at any later time; `reason` and `detail` as in `Quarantined`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Readable(Protocol):
    """Sequential bytes."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""
        ...


class SourceFile(io.RawIOBase):
    """The raw bytes of a source, for us or for pyarrow to read.

    pyarrow raises OSError for a damaged stream just as for a disk or a network that fails. What failed down here is
    kept in `failure`, so that a passing fault is never taken for damage.

    Args:
        source: the input.
        on_read: gets all bytes that pass.

    Raises:
        UserError: the source cannot be opened.
    """

    def __init__(self, source: Source, on_read: Callable[[bytes], None] | None = None) -> None:
        super().__init__()
        self._file = open_source(source)
        self._on_read = on_read
        self.failure: Exception | None = None
        self.at_end = False

    @property
    def size(self) -> int:
        """Bytes of the source as it is now."""
        size: int = self._file.size()
        return size

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes, all that are left where it is negative."""
        try:
            if size > _MOST_AT_ONCE:  # a damaged file may ask for more than there is memory
                size = min(size, self.size)
            data: bytes = self._file.read(None if size < 0 else size)
        except Exception as error:
            self.failure = error
            raise
        self.at_end = not data and size != 0
        if self._on_read is not None:
            self._on_read(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to another position."""
        position: int = self._file.seek(offset, whence)
        return position

    def tell(self) -> int:
        """The position in bytes."""
        position: int = self._file.tell()
        return position

    def close(self) -> None:
        """Close the source; again does nothing."""
        if not self.closed:
            self._file.close()
        super().close()

    def drain(self) -> None:
        """Read to the end, for `on_read` alone."""
        while self.read(CHUNK * 16):
            pass


class Decompressed:
    """The content of a compressed source: all members of a gzip file, all frames of a zstd file.

    `read` gives every byte that can be had before a cut, and then raises `CutError`. pyarrow's streams notice a
    truncated file, which the PyPI `zstandard` reader does not; but the call that meets the cut loses what it had read.
    So its bytes are read once more, one at a time.

    Args:
        source: the input, compressed.
        on_read: gets all raw bytes that pass.

    Raises:
        UserError: the source cannot be opened.
    """

    def __init__(self, source: Source, on_read: Callable[[bytes], None] | None = None) -> None:
        self._source = source
        self.raw = SourceFile(source, on_read)
        self._stream = _decompress(self.raw, source.compression)
        self._position = 0
        self._cut: CutError | None = None

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes of content; none at the end.

        Raises:
            CutError: the stream is truncated or damaged here.
            OSError: the disk or network failed.
        """
        if self._cut is not None:
            raise self._cut
        try:
            data: bytes = self._stream.read(size)
        except (OSError, pa.ArrowException):
            if self.raw.failure is not None:
                raise self.raw.failure from None
            self._cut = _cut_of(self.raw)
            data = self._salvage()
        else:
            if not data and self._position == 0 and self.raw.tell() == 0:
                self._cut = CutError(TRUNCATED, "the file is empty")
        if self._cut is not None and not data:
            raise self._cut
        self._position += len(data)
        return data

    @property
    def size(self) -> int:
        """Bytes of the source as it is now, compressed."""
        return self.raw.size

    def close(self) -> None:
        """Close the source."""
        self._stream.close()
        self.raw.close()

    def drain(self) -> None:
        """Read the rest of the source as it is, for `on_read` alone."""
        self.raw.drain()

    def _salvage(self) -> bytes:
        raw = SourceFile(self._source)
        salvaged = bytearray()
        try:
            stream = _decompress(raw, self._source.compression)
            left = self._position
            while left:
                left -= len(stream.read(min(left, CHUNK)))
            while byte := stream.read(1):
                salvaged += byte
        except (OSError, pa.ArrowException):
            if raw.failure is not None:
                raise raw.failure from None
        finally:
            raw.close()
        return bytes(salvaged)


def open_content(source: Source, on_read: Callable[[bytes], None] | None = None) -> "SourceFile | Decompressed":
    """The content of a source from its start, decompressed if it is compressed.

    Raises:
        UserError: the source cannot be opened.
    """
    return SourceFile(source, on_read) if source.compression is None else Decompressed(source, on_read)


def _decompress(raw: SourceFile, compression: Compression | None) -> pa.NativeFile:
    return pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression)


def _cut_of(raw: SourceFile) -> CutError:
    if raw.at_end:
        return CutError(TRUNCATED, "the compressed stream ends before its end mark")
    return CutError(UNREADABLE, f"the compressed stream is damaged before byte {raw.tell()}")


def read_lines(stream: Readable, *, limit: int, offset: int = 0) -> Iterator[tuple[int, int, bytes | None]]:
    r"""Lines that are not blank, as (offset, size, content), in bounded memory whatever the length of a line.

    Lines end with `\n` and nothing else. Offset and size count all bytes of the line. The content comes without the
    blanks of JSON around it (which take in `\r`), nor the byte order mark that may stand at the start of a file; it is
    None for a line of more than `limit` bytes.

    Args:
        stream: at the start of a line.
        limit: the most bytes a line may have.
        offset: the stream's position in its source.

    Raises:
        CutError: after all lines that end before the cut.
    """
    head: list[bytes] = []
    held = 0
    while chunk := stream.read(CHUNK):
        start = 0
        while (end := chunk.find(b"\n", start) + 1) > 0:
            size = held + end - start
            content = b"".join((*head, chunk[start:end])) if size <= limit else None
            if content is None or (content := _trim(content, offset)):
                yield offset, size, content
            head.clear()
            offset, start, held = offset + size, end, 0
        if start < len(chunk):
            held += len(chunk) - start
            if held <= limit:
                head.append(chunk[start:])
            else:
                head.clear()
    if held:
        content = b"".join(head) if held <= limit else None
        if content is None or (content := _trim(content, offset)):
            yield offset, held, content


def _trim(content: bytes, offset: int) -> bytes:
    return (content if offset else content.removeprefix(BOM)).strip(JSON_BLANKS)
