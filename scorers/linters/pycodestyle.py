"""Kind `pycodestyle`: violations of PEP 8 a character, line by line.

The whole file is checked once, as `pycodestyle` checks a file on disk, and each violation counts on its physical line.
No configuration file of a project or user is read. Code that does not parse has one violation for that, on the line
where Python's parser stops; pycodestyle itself notices only some syntax errors, and others in Python 3.12 than in 3.11.
"""

import platform
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from scorers.contract import Document, Execution, ScoringError, SemanticOptions
from scorers.fingerprint import fingerprint, library_versions
from scorers.isolation import attempt
from scorers.linters.lines import line_of_syntax_error, normalised_lines, per_character
from scorers.requirements import require

_REVISION = 1


class PycodestyleOptions(SemanticOptions):
    """Options of `pycodestyle`.

    Attributes:
        max_line_length: characters above which a line is too long.
        ignore: prefixes of codes that do not count; None for pycodestyle's own list of disputed checks.
    """

    max_line_length: int = Field(default=79, ge=1)
    ignore: list[str] | None = None


class PycodestyleScorer:
    """PEP 8 violations on a line divided by its characters, the terminator included."""

    Options = PycodestyleOptions
    main_option: str | None = None
    runs_on_gpu = False

    def __init__(self, name: str, options: PycodestyleOptions, execution: Execution) -> None:
        self.name = name
        self._deadline_s = execution.deadline_s
        self.check(options)
        self._checker, self._options = _set_up(options)
        self.fingerprint = fingerprint(
            "pycodestyle",
            options.model_dump(mode="json"),
            revision=_REVISION,
            libraries={**library_versions("pycodestyle"), "python": platform.python_version()},
        )

    @classmethod
    def check(cls, _options: PycodestyleOptions) -> None:
        """Raise `UserError` when something is missing to run here."""
        require("pycodestyle", "pycodestyle", install="pycodestyle")

    def applies(self, document: Document) -> bool:
        """To Python alone."""
        return document.kind == "python"

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        """Scores of each document on its own."""
        return [attempt(self._score_one, document, self._deadline_s) for document in documents]

    def _score_one(self, document: Document) -> NDArray[np.float32]:
        return per_character(document, self.violations(document.text))

    def violations(self, text: str) -> list[int]:
        """The numbers of the physical lines with violations, once for each violation.

        Raises:
            Exception: pycodestyle or the parser fails on the text; any exception of theirs.
        """
        lines = normalised_lines(text)
        error_line = line_of_syntax_error("".join(lines).removeprefix("\ufeff"))
        report = _Report(self._options)
        try:
            self._checker(lines=lines, options=self._options, report=report).check_all()
        except IndexError:
            # It stumbles over what an unterminated string or bracket leaves behind; what it found before counts.
            if error_line is None:
                raise
        if error_line is None:
            return [line for line, _ in report.found]
        return [line for line, code in report.found if not code.startswith("E9")] + [error_line]


class _Report:
    """Collects the lines of violations in place of `pycodestyle.BaseReport`."""

    def __init__(self, options: Any) -> None:
        self._ignore_code = options.ignore_code
        self.found: list[tuple[int, str]] = []

    def init_file(self, *_arguments: Any) -> None:
        pass

    def increment_logical_line(self) -> None:
        pass

    def get_file_results(self) -> int:
        return len(self.found)

    def error(self, line_number: int, _offset: int, text: str, _check: Any) -> str | None:
        code = text[:4]
        if self._ignore_code(code):
            return None
        self.found.append((line_number, code))
        return code


def _set_up(options: PycodestyleOptions) -> tuple[Any, Any]:
    """The `Checker` of pycodestyle and the options it takes.

    They are put together here because `StyleGuide`'s own constructor reads `~/.config/pycodestyle`.
    """
    import pycodestyle

    ignore = pycodestyle.DEFAULT_IGNORE.split(",") if options.ignore is None else options.ignore
    guide = object.__new__(pycodestyle.StyleGuide)
    guide.options = SimpleNamespace(select=(), ignore=tuple(ignore))
    return pycodestyle.Checker, SimpleNamespace(
        ignore_code=guide.ignore_code,
        physical_checks=guide.get_checks("physical_line"),
        logical_checks=guide.get_checks("logical_line"),
        ast_checks=[],
        max_line_length=options.max_line_length,
        max_doc_length=None,
        indent_size=pycodestyle.INDENT_SIZE,
        hang_closing=False,
        verbose=0,
    )
