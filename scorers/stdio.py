"""Make stdout and stderr accept any text, whatever encoding, pipe or disk is behind them."""

import codecs
import errno
import io
import os
import sys
from typing import Any, TextIO

from scorers.errors import IncompleteError

_PLAIN = "phf-plain"
_ASCII = {
    "…": "...",
    "✓": "+",
    "✗": "x",
    "·": "-",
    **dict.fromkeys("‐‑‒–—―−", "-"),
    **dict.fromkeys("█▉▊▋▌▍▎▏", "#"),
}


def set_up_streams() -> None:
    """Prepare stdout and stderr for text that they cannot encode, and for the loss of their reader.

    Characters that a stream cannot encode are written in ASCII or as escapes. Output to a stream that the caller has
    closed, or to stdout after its reader has gone, is dropped, and the exit status stays what it would have been.
    Output that cannot be written to stderr is dropped too.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    codecs.register_error(_PLAIN, _plain)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stream(sys.stdout, _Stdout(1, "w", closefd=False))
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stream(sys.stderr, _Stderr(2, "w", closefd=False), by_line=True)


class _Stdout(io.FileIO):
    _failed = False

    def write(self, data: Any) -> int:
        """Write some of the data; raise a failure only once, so that nothing else fails while Python exits."""
        try:
            return len(data) if self._failed else super().write(data)
        except OSError as error:
            self._failed = True
            if error.errno == errno.EPIPE:
                return len(data)
            raise IncompleteError(f"Cannot write to the standard output: {error.strerror or error}.") from None


class _Stderr(io.FileIO):
    def write(self, data: Any) -> int:
        """Write some of the data, or drop it."""
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _stream(stream: Any, raw: io.FileIO, *, by_line: bool = False) -> TextIO:
    """Return a text stream like `stream`, which is None if the caller has closed it."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding="utf-8" if stream is None else stream.encoding,
        errors=_PLAIN,
        line_buffering=by_line or (stream is not None and stream.line_buffering),
        write_through=stream is not None and stream.write_through,
    )


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    shown = (_ASCII.get(each) or each.encode("ascii", "backslashreplace").decode() for each in text)
    return "".join(shown), error.end
