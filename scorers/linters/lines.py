"""What the Python linters share: physical lines, syntax errors, violations per line as scores, and their places."""

import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scorers.contract import Document, ScoringError
from scorers.sentences import split
from scorers.spans import Finding, Located

# Most characters that linters accept. CPython's parser needs up to 400 bytes for each.
LONGEST = 2_000_000

# The parser joins the parts of an imported name one by one and keeps every intermediate string: 50,000 parts, in 100 KB
# of text, took 2.7 GB.
_MOST_PARTS = 200
_MANY_PARTS = re.compile(rf"(?<![\w.])(?:\w++[ \t\f\\\n]*+\.[ \t\f\\\n]*+){{{_MOST_PARTS}}}")

# The compiler checks futures after it has parsed the whole source, and before anything else that could fail or take
# memory: building the tree as Python objects takes more than parsing, and fails on long chains of operators.
_PARSE_ONLY = "from __future__ import phf_parse_only\n"
_PARSED = "future feature phf_parse_only is not defined"


# An end of a violation that covers the rest of its line.
REST = sys.maxsize

# What a violation covers if its linter gives no end: a run of letters, of spaces, or of other characters. Bounded, so
# that many violations on a long line do not take quadratic time.
_TOKEN = re.compile(r"\w{1,100}|\s{1,100}|[^\w\s]{1,100}")
_MARK = "\ufeff"


class Violation(NamedTuple):
    """A violation of a rule.

    Attributes:
        line: the physical line, from 1.
        rule: its code or name.
        column: from 0, in code points of the line without a byte order mark.
        end: exclusive, in the same line, or `REST`; None if the linter does not say, then it covers the token there.
    """

    line: int
    rule: str
    column: int = 0
    end: int | None = REST


def normalised_lines(text: str) -> list[str]:
    r"""Return the physical lines of `text`, each terminator replaced by `\n`, as Python reads source from a file.

    Only `\n`, `\r\n` and `\r` end a line; form feeds, U+2028 and the like do not.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    last = lines.pop()
    return [f"{line}\n" for line in lines] + ([last] if last else [])


def too_long(text: str) -> ScoringError | None:
    """Return the error `too-long` for a text of more than `LONGEST` characters, else None."""
    if len(text) <= LONGEST:
        return None
    return ScoringError("too-long", f"{len(text):,} characters of Python, more than {LONGEST:,}")


def refuse_too_long(text: str) -> None:
    """Raise the error of `too_long`, if any."""
    error = too_long(text)
    if error is not None:
        raise error


def line_of_syntax_error(source: str) -> int | None:
    """Return the line, from 1, of the first syntax error in `source`; None if it parses.

    `source` must not include the byte order mark that a file may begin with: any mark is an error.

    Raises:
        ScoringError: `too-deep` for code nested too deeply to parse, `too-long` for more than `LONGEST` characters.
    """
    refuse_too_long(source)
    if source.count(".") >= _MOST_PARTS and "import" in source and _MANY_PARTS.search(source) is not None:
        raise ScoringError("too-deep", f"a dotted name of more than {_MOST_PARTS} parts")
    if "\0" in source:
        # Python reports no line for it.
        return source.partition("\0")[0].count("\n") + 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            compile(_PARSE_ONLY + source, "<document>", "exec", dont_inherit=True)
    except SyntaxError as error:
        if error.msg == _PARSED:
            return None
        return max((error.lineno or 2) - 1, 1)
    except MemoryError:
        raise ScoringError("too-deep", "nested too deeply for Python's parser") from None
    raise AssertionError("a future that Python does not know was imported")


def per_character(document: Document, line_numbers: Iterable[int]) -> NDArray[np.float32]:
    """Return the violations per character of each sentence, float32 [n_sentences].

    `line_numbers` holds the physical line, from 1, of each violation. A number beyond the last line, where checkers see
    the end of the file, counts on the last line.
    """
    if not len(document.ends):
        return np.zeros(0, dtype=np.float32)
    return _rates(document, _sentences(document, line_numbers, split(document.text, "python"))[1])


def locate(document: Document, violations: Sequence[Violation]) -> Located:
    """Return the scores of `per_character`, with the places of the violations.

    A place is never empty, and ends with its line, before the terminator unless nothing else is left. A violation at
    the end of the file is placed at its last character.
    """
    text, ends = document.text, document.ends
    if not len(ends):
        return Located(np.zeros(0, dtype=np.float32), [])
    line_ends = split(text, "python")
    lines, sentences = _sentences(document, [each.line for each in violations], line_ends)
    findings = []
    for each, line, sentence in zip(violations, lines.tolist(), sentences.tolist(), strict=True):
        first = int(line_ends[line - 1]) if line else 0
        # A line that sentences of the corpus divide counts in the one in which it begins.
        last = min(int(line_ends[line]), int(ends[sentence]))
        content = first + len(text[first:last].rstrip("\r\n"))
        shift = first + (line == 0 and text.startswith(_MARK))
        start = last - 1 if each.line > len(line_ends) else min(shift + max(each.column, 0), last - 1)
        stop = content if start < content else last
        token = _TOKEN.match(text, start, stop)
        end = shift + each.end if each.end is not None else token.end() if token else stop
        findings.append(Finding(start, min(max(end, start + 1), stop), each.rule))
    return Located(_rates(document, sentences), sorted(findings))


def _sentences(
    document: Document, line_numbers: Iterable[int], line_ends: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the index of the line of each violation, and of the sentence in which that line begins."""
    starts = np.concatenate([[0], line_ends[:-1]])
    lines = np.clip(np.fromiter(line_numbers, dtype=np.int64), 1, len(starts)) - 1
    return lines, np.searchsorted(document.ends, starts[lines], side="right")


def _rates(document: Document, sentences: NDArray[np.int64]) -> NDArray[np.float32]:
    counts = np.bincount(sentences, minlength=len(document.ends))
    return (counts / np.diff(document.ends, prepend=0)).astype(np.float32)
