"""What the linters of Python share: the physical lines of a document, and violations a line as scores."""

import warnings
from ast import PyCF_ONLY_AST
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from scorers.contract import Document
from scorers.sentences import split


def normalised_lines(text: str) -> list[str]:
    r"""The physical lines of `text`, each terminator written as `\n`, as Python reads source from a file.

    Only `\n`, `\r\n` and `\r` end a line: form feeds, U+2028 and the like stay inside theirs.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    last = lines.pop()
    return [f"{line}\n" for line in lines] + ([last] if last else [])


def line_of_syntax_error(source: str) -> int | None:
    """The line, from 1, of the error that keeps Python from parsing `source`; None when it parses.

    `source` is without the byte order mark that a file may begin with: a second one is an error.

    Raises:
        RecursionError, MemoryError: code nested too deeply to parse.
    """
    if "\0" in source:
        # Python refuses it without saying where.
        return source.partition("\0")[0].count("\n") + 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            compile(source, "<document>", "exec", flags=PyCF_ONLY_AST, dont_inherit=True)
    except SyntaxError as error:
        return error.lineno or 1
    return None


def per_character(document: Document, line_numbers: Iterable[int]) -> NDArray[np.float32]:
    """Violations on each sentence, given by the number of their physical line from 1, divided by its characters.

    A number beyond the last line, where checkers see the end of the file, counts on the last line.

    Returns:
        float32 [n_sentences].
    """
    ends = document.ends
    if not len(ends):
        return np.zeros(0, dtype=np.float32)
    line_ends = split(document.text, "python")
    starts = np.concatenate([[0], line_ends[:-1]])
    lines = np.clip(np.fromiter(line_numbers, dtype=np.int64), 1, len(starts)) - 1
    sentences = np.searchsorted(ends, starts[lines], side="right")
    counts = np.bincount(sentences, minlength=len(ends))
    return (counts / np.diff(ends, prepend=0)).astype(np.float32)
