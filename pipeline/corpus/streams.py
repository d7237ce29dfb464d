"""Bytes of a source: decompressed up to where a damaged stream ends, and cut into lines."""

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
    """The content of a compressed source, as `decompressed` gives it.

    Args:
        source: the input.
        compression: of it.
        on_read: gets all raw bytes that pass.

    Raises:
        UserError: the source cannot be opened.
    """

    def __init__(
        self, source: Source, compression: Compression, on_read: Callable[[bytes], None] | None = None
    ) -> None:
        self._raw = SourceFile(source, on_read)
        self._pieces = decompressed(self._raw, compression, source.uri)
        self._held = memoryview(b"")
        self._cut: CutError | None = None

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes of content; none at the end.

        Raises:
            CutError: the stream is truncated or damaged here.
            UserError: it needs what is not decoded, such as a dictionary.
            OSError: the disk or network failed.
        """
        if self._cut is not None:
            raise self._cut
        try:
            while not self._held:
                self._held = memoryview(next(self._pieces))
        except StopIteration:
            return b""
        except CutError as cut:
            self._cut = cut
            raise
        data, self._held = bytes(self._held[:size]), self._held[size:]
        return data

    @property
    def size(self) -> int:
        """Bytes of the source as it is now, compressed."""
        return self._raw.size

    def close(self) -> None:
        """Close the source."""
        self._raw.close()

    def drain(self) -> None:
        """Read the rest of the source as it is, for `on_read` alone."""
        self._raw.drain()


def open_content(source: Source, on_read: Callable[[bytes], None] | None = None) -> "SourceFile | Decompressed":
    """The content of a source from its start, decompressed if it is compressed.

    Raises:
        UserError: the source cannot be opened.
    """
    if source.compression is None:
        return SourceFile(source, on_read)
    return Decompressed(source, source.compression, on_read)


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
