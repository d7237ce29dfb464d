"""pycodestyle's own `Checker` on one file, with the default options and no configuration of a user or project."""

import io
from collections.abc import Iterable
from unittest import mock

import pycodestyle


class _Lines(pycodestyle.BaseReport):  # type: ignore[misc]
    """Also record the line and the code of every violation."""

    def __init__(self, options: object) -> None:
        super().__init__(options)
        self.found: list[tuple[int, str]] = []

    def error(self, line_number: int, offset: int, text: str, check: object) -> str | None:
        code: str | None = super().error(line_number, offset, text, check)
        if code:
            self.found.append((line_number, code))
        return code


def violations(text: str, ignore: Iterable[str] | None = None) -> list[tuple[int, str]]:
    """The line, from 1, and the code of each violation in a file with this text, in the order of the library.

    Args:
        text: the content of the file.
        ignore: prefixes of codes to ignore; None for the library's own list.

    Raises:
        IndexError: the library fails on the tokens that an unterminated string or bracket leaves.
    """
    with mock.patch.object(pycodestyle, "USER_CONFIG", None):
        guide = pycodestyle.StyleGuide(**({} if ignore is None else {"ignore": list(ignore)}))
    report = _Lines(guide.options)
    pycodestyle.Checker(
        lines=io.StringIO(text, newline=None).readlines(), options=guide.options, report=report
    ).check_all()
    return report.found
