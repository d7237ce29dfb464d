"""Read the bytes of a source, decompress them up to any damage, and split them into lines."""

import io
from collections.abc import Callable, Iterator
from typing import Protocol

from pipeline.corpus.compression import Compression, CutError, decompressed
from pipeline.corpus.inputs import Source, open_source

CHUNK = 1 << 16
_MOST_AT_ONCE = 1 << 26
BOM = b"\xef\xbb\xbf"
JSON_BLANKS = b" \t\r\n"


class Readable(Protocol):
    """Sequential bytes."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""
        ...


class SourceFile(io.RawIOBase):
    """The raw bytes of a source as a file object, also for pyarrow.

    pyarrow raises OSError for a damaged stream as well as for a failing disk or network. `failure` keeps the errors of
    disk and network, so that a transient fault is never taken for damage.

    `on_read` is called with all bytes as they are read.

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
        """The current size of the source in bytes."""
        size: int = self._file.size()
        return size

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes; all that are left if it is negative."""
        try:
            if size > _MOST_AT_ONCE:  # a damaged file may make pyarrow request more than fits in memory
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
        """Close the source; idempotent."""
        if not self.closed:
            self._file.close()
        super().close()

    def drain(self) -> None:
        """Read to the end, only to call `on_read`."""
        while self.read(CHUNK * 16):
            pass


class Decompressed:
    """The content of a compressed source; `on_read` is called with all raw bytes as they are read.

    Raises:
        UserError: the source cannot be opened.
    """

    def __init__(
        self, source: Source, compression: Compression, on_read: Callable[[bytes], None] | None = None
    ) -> None:
        self._raw = SourceFile(source, on_read)
        self._pieces = decompressed(self._raw, compression, source.uri)
        self._buffer = memoryview(b"")
        self._cut: CutError | None = None

    def read(self, size: int, /) -> bytes:
        """Read up to `size` bytes of content; none at the end.

        Raises:
            CutError: the stream is truncated or damaged here.
            UserError: the stream needs an unsupported feature, such as a dictionary.
            OSError: the disk or network failed.
        """
        if self._cut is not None:
            raise self._cut
        try:
            while not self._buffer:
                self._buffer = memoryview(next(self._pieces))
        except StopIteration:
            return b""
        except CutError as cut:
            self._cut = cut
            raise
        data, self._buffer = bytes(self._buffer[:size]), self._buffer[size:]
        return data

    @property
    def size(self) -> int:
        """The current size of the compressed source in bytes."""
        return self._raw.size

    def close(self) -> None:
        """Close the source."""
        self._raw.close()

    def drain(self) -> None:
        """Read the rest of the raw source, only to call `on_read`."""
        self._raw.drain()


def open_content(source: Source, on_read: Callable[[bytes], None] | None = None) -> "SourceFile | Decompressed":
    """Open the content of a source at its start, decompressed if necessary.

    Raises:
        UserError: the source cannot be opened.
    """
    if source.compression is None:
        return SourceFile(source, on_read)
    return Decompressed(source, source.compression, on_read)


def read_lines(stream: Readable, *, limit: int, offset: int = 0) -> Iterator[tuple[int, int, bytes | None]]:
    r"""Yield the lines that are not blank as (offset, size, content), in bounded memory whatever their length.

    Only `\n` ends a line. Offset and size count all bytes of the line. The content is stripped of JSON whitespace
    (which includes `\r`) and of a byte order mark at the start of a file; it is None for a line over `limit` bytes.

    Args:
        stream: a stream at the start of a line.
        limit: the largest size of a line in bytes.
        offset: the stream's position in its source.

    Raises:
        CutError: after all lines that end before the cut.
    """
    head: list[bytes] = []
    length = 0
    while chunk := stream.read(CHUNK):
        start = 0
        while (end := chunk.find(b"\n", start) + 1) > 0:
            size = length + end - start
            content = b"".join((*head, chunk[start:end])) if size <= limit else None
            if content is None or (content := _trim(content, offset)):
                yield offset, size, content
            head.clear()
            offset, start, length = offset + size, end, 0
        if start < len(chunk):
            length += len(chunk) - start
            if length <= limit:
                head.append(chunk[start:])
            else:
                head.clear()
    if length:
        content = b"".join(head) if length <= limit else None
        if content is None or (content := _trim(content, offset)):
            yield offset, length, content


def _trim(content: bytes, offset: int) -> bytes:
    return (content if offset else content.removeprefix(BOM)).strip(JSON_BLANKS)
