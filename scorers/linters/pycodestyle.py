"""Kind `pycodestyle`: violations of PEP 8 per character, line by line.

The whole file is checked once, as `pycodestyle` checks a file on disk, and each violation counts on its physical line.
No configuration file is read. Code that does not parse, such as prose, has one violation for that, on the line where
Python's parser stops; pycodestyle itself notices only some syntax errors, and not the same in Python 3.12 as in 3.11.
Everything else is what the library's own `Checker` finds, except that

- in a file that does not parse and has a line of more than 5,000 characters, only the syntax error counts;
- on a logical line of more than 50,000 characters, E12x, E713, E714 and E721 are left out;
- a file of more than 2,000,000 characters is not scored (`too-long`), nor code nested too deeply for Python's parser
  (`too-deep`).
"""

import platform
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from scorers.attempt import attempt
from scorers.contract import Document, DocumentKind, Execution, ScoringError, SemanticOptions
from scorers.fingerprint import fingerprint, library_versions
from scorers.linters.lines import (
    REST,
    Violation,
    line_of_syntax_error,
    locate,
    normalised_lines,
    per_character,
    refuse_too_long,
)
from scorers.requirements import require
from scorers.spans import Located

_REVISION = 2

# Longest line, in characters, that is checked in code that does not parse: the tokeniser is quadratic in such lines.
LONGEST_BROKEN_LINE = 5_000

# The line is too long: all that is beyond the limit.
_TOO_LONG = "E501"


class PycodestyleOptions(SemanticOptions):
    """Options of `pycodestyle`.

    Attributes:
        max_line_length: most characters in a line.
        ignore: prefixes of codes that do not count; None for pycodestyle's own default list.
    """

    max_line_length: int = Field(default=79, ge=1)
    ignore: list[str] | None = None


class PycodestyleScorer:
    """PEP 8 violations on a line divided by its characters, the terminator included."""

    Options = PycodestyleOptions
    main_option: str | None = None
    runs_on_gpu = False
    redacts = False
    documents: DocumentKind | None = "python"

    def __init__(self, name: str, options: PycodestyleOptions, execution: Execution) -> None:
        self.name = name
        self._deadline_s = execution.deadline_s
        self.check(options)
        self._checker, self._options, self._clear_cache = _set_up(options)
        self.fingerprint = fingerprint(
            "pycodestyle",
            options.model_dump(mode="json"),
            revision=_REVISION,
            libraries={**library_versions("pycodestyle"), "python": platform.python_version()},
        )

    @classmethod
    def check(cls, _options: PycodestyleOptions) -> None:
        """Raise `UserError` if something needed here is missing."""
        require("pycodestyle", "pycodestyle", install="pycodestyle")

    def applies(self, document: Document) -> bool:
        """Return whether the document is Python."""
        return document.kind == self.documents

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        """Score each document on its own."""
        return [attempt(self._score_one, document, self._deadline_s) for document in documents]

    def locate(self, documents: Sequence[Document]) -> list[Located | ScoringError]:
        """Score and locate each document on its own.

        pycodestyle gives no ends: a violation covers the token at its column, or for E501 the rest of the line.
        """
        return [attempt(self._locate_one, document, self._deadline_s) for document in documents]

    def _score_one(self, document: Document) -> NDArray[np.float32]:
        return per_character(document, [each.line for each in self.places(document.text)])

    def _locate_one(self, document: Document) -> Located:
        return locate(document, self.places(document.text))

    def violations(self, text: str) -> list[tuple[int, str]]:
        """Return the line and code of each of `places`."""
        return [each[:2] for each in self.places(text)]

    def places(self, text: str) -> list[Violation]:
        """Return the violations; `E9` for the syntax error, on its whole line.

        Raises:
            ScoringError: the text is too long, or nested too deeply for Python's parser.
            Exception: whatever pycodestyle raises if it fails on the text.
        """
        refuse_too_long(text)
        lines = normalised_lines(text)
        error_line = line_of_syntax_error("".join(lines).removeprefix("\ufeff"))
        if error_line is not None and max(map(len, lines)) > LONGEST_BROKEN_LINE:
            return [Violation(error_line, "E9")]
        report = _Report(self._options)
        try:
            self._checker(lines=lines, options=self._options, report=report).check_all()
        except IndexError:
            # An unterminated string or bracket makes it fail at the end; what it found before counts.
            if error_line is None:
                raise
        finally:
            self._clear_cache()
        if error_line is None:
            return report.found
        return [each for each in report.found if not each.rule.startswith("E9")] + [Violation(error_line, "E9")]


class _Report:
    """Collects the lines of violations in place of `pycodestyle.BaseReport`."""

    def __init__(self, options: Any) -> None:
        self._ignore_code = options.ignore_code
        self.found: list[Violation] = []

    def init_file(self, *_arguments: Any) -> None:
        pass

    def increment_logical_line(self) -> None:
        pass

    def get_file_results(self) -> int:
        return len(self.found)

    def error(self, line_number: int, column: int, text: str, _check: Any) -> str | None:
        code = text[:4]
        if self._ignore_code(code):
            return None
        self.found.append(Violation(line_number, code, column, REST if code == _TOO_LONG else None))
        return code


def _set_up(options: PycodestyleOptions) -> tuple[Any, Any, Any]:
    """Return the class that checks a file, its options, and a function that clears the library's cache of lines.

    The options are built here because the constructor of `StyleGuide` reads `~/.config/pycodestyle`.
    """
    import pycodestyle

    from scorers.linters.pycodestyle_checker import LineChecker, prepare_checks

    ignore = pycodestyle.DEFAULT_IGNORE.split(",") if options.ignore is None else options.ignore
    guide = object.__new__(pycodestyle.StyleGuide)
    guide.options = SimpleNamespace(select=(), ignore=tuple(ignore))
    checking = SimpleNamespace(
        ignore_code=guide.ignore_code,
        physical_checks=guide.get_checks("physical_line"),
        logical_checks=prepare_checks(guide.get_checks("logical_line")),
        ast_checks=[],
        max_line_length=options.max_line_length,
        max_doc_length=None,
        indent_size=pycodestyle.INDENT_SIZE,
        hang_closing=False,
        verbose=0,
    )
    return LineChecker, checking, pycodestyle.noqa.cache_clear
