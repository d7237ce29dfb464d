"""A faster `pycodestyle.Checker` with the same findings, without the work that cannot find anything.

Every check is the library's own. Three things differ:

- A check runs on a line only if it could find something there; `_GATES` holds the condition for each check. A check
  without a gate, such as one that a later version of the library adds, always runs.
- Nothing is recomputed for every token of a line, which made the library quadratic in the length of a line, and
  patterns that are quadratic in a run of spaces are replaced by linear ones (`_linear_checks`).
- Of the checks that remain quadratic in hostile code, three are left out on a logical line of more than
  `LONGEST_LOGICAL_LINE` characters (`_LEFT_OUT`).

Importing this module imports pycodestyle.
"""

import keyword
import re
import tokenize
from collections.abc import Callable, Iterator
from functools import cache
from operator import attrgetter
from types import FunctionType
from typing import Any

import pycodestyle
from pycodestyle import Checker

LONGEST_LOGICAL_LINE = 50_000

# E12x, E713 and E714, E721.
_LEFT_OUT = frozenset({"continued_indentation", "comparison_negative", "comparison_type"})

_NEWLINE = pycodestyle.NEWLINE
_STRING_STARTS = frozenset({pycodestyle.FSTRING_START, pycodestyle.TSTRING_START})
_STRING_ENDS = frozenset({pycodestyle.FSTRING_END, pycodestyle.TSTRING_END})
_KEYWORDS = frozenset(keyword.kwlist) - pycodestyle.SINGLETONS
_OPERATORS = (
    frozenset(",;:") | pycodestyle.WS_NEEDED_OPERATORS | pycodestyle.UNARY_OPERATORS | pycodestyle.WS_OPTIONAL_OPERATORS
)
_AMBIGUOUS = frozenset("lOI")
_ENDS_IN_SPACE = frozenset(" \t\v\f\r")

_TWO_SPACES = re.compile(r"\t|\s\s")
_BRACKET_AFTER_SPACE = re.compile(r"\s[(\[]")
_IS_OR_IN = re.compile(r"\s(?:in|is)\s")


class LineChecker(Checker):  # type: ignore[misc]
    r"""A `pycodestyle.Checker` for given lines that end in `\n`; it reports what that class reports, in its order."""

    # Facts about the current logical line, for the gates.
    texts: set[str]
    one_row: bool

    lines_upwards: "_LinesUpwards"
    _last_line: str

    def check_all(self, _expected: Any = None, _line_offset: int = 0) -> int:
        """Run all checks, and return the number of violations."""
        self.total_lines = len(self.lines)
        self.line_number = 0
        self.indent_char = None
        self.indent_level = self.previous_indent_level = 0
        self.previous_logical = ""
        self.previous_unindented_logical_line = ""
        self.tokens: list[Any] = []
        self.blank_lines = self.blank_before = 0
        self._last_line = ""
        self.lines_upwards = _LinesUpwards(self.lines)
        try:
            self._check_tokens()
        except (SyntaxError, tokenize.TokenError):
            self.report_invalid_syntax()
        if self.tokens:
            self.noqa = self._last_line and pycodestyle.noqa(self._last_line)
            self.check_physical(self.lines[-1])
            self.check_logical()
        return int(self.report.get_file_results())

    def _check_tokens(self) -> None:
        parens = 0
        line_before, previous_line = "", None
        backslash = last = -1
        for token in tokenize.generate_tokens(self.readline):
            kind, text, start, end, line = token
            if start[0] > self.total_lines:
                return
            if line is not previous_line:
                previous_line = line
                # The range of columns at which a token may end so that only a backslash follows on its line.
                last = len(line) - 2
                backslash = len(line[:-2].rstrip()) if line.endswith("\\\n") else last + 1
            if kind in _STRING_STARTS:
                self.maybe_check_physical(token, line_before)
            elif kind in _NEWLINE or backslash <= end[1] <= last:
                physical = line or line_before
                if not self._is_clean(physical):
                    self.noqa = line and pycodestyle.noqa(line)
                    super().check_physical(physical)
            elif (kind == tokenize.STRING and "\n" in text) or kind in _STRING_ENDS:
                # The call below evaluates "noqa" itself.
                self.noqa = False
                self.maybe_check_physical(token, line_before)
            line_before = self._last_line = line
            self.tokens.append(token)
            if kind == tokenize.OP:
                if text in "([{":
                    parens += 1
                elif text in "}])":
                    parens -= 1
            elif not parens and kind in _NEWLINE:
                if kind == tokenize.NEWLINE:
                    self.check_logical()
                    self.blank_before = 0
                elif len(self.tokens) == 1:
                    self.blank_lines += 1
                    del self.tokens[0]
                else:
                    self.check_logical()

    def check_physical(self, line: str) -> None:
        """Run the checks of a physical line, unless none could find anything."""
        # The lines of a multi-line string come with an extra terminator.
        if not self._is_clean(line[:-1] if line.endswith("\n\n") else line):
            super().check_physical(line)

    def _is_clean(self, line: str) -> bool:
        return (
            len(line) <= self.max_line_length
            and line[-1:] == "\n"
            and line[-2:-1] not in _ENDS_IN_SPACE
            and "\t" not in line
            and (line[0] != " " or self.indent_char == " ")
            and self.line_number != self.total_lines
        )

    def check_logical(self) -> None:
        """Run the checks on the logical line that could find something."""
        mapping = self.build_tokens_line()
        if not mapping:
            return
        start_row, start_column = mapping[0][1]
        self.indent_level = pycodestyle.expand_indent(self.lines[start_row - 1][:start_column])
        self.blank_before = max(self.blank_before, self.blank_lines)
        self.texts = {token[1] for token in self.tokens}
        self.one_row = self.tokens[0][2][0] == self.tokens[-1][3][0]
        long = len(self.logical_line) > LONGEST_LOGICAL_LINE
        offsets = None
        for check, gate, arguments, state, left_out in self._logical_checks:
            if (long and left_out) or (gate is not None and not gate(self)):
                continue
            if state is not None:
                self.checker_state = self._checker_states.setdefault(state, {})
            for where, text in check(*arguments(self)) or ():
                if isinstance(where, tuple):
                    row, column = where
                else:
                    offsets = offsets or [offset for offset, _ in mapping]
                    offset, (row, column) = mapping[pycodestyle.bisect.bisect_left(offsets, where)]
                    column += where - offset
                self.report_error(row, column, text, check)
        if self.logical_line:
            self.previous_indent_level = self.indent_level
            self.previous_logical = self.logical_line
            if not self.indent_level:
                self.previous_unindented_logical_line = self.logical_line
        self.blank_lines = 0
        self.tokens = []


def prepare_checks(checks: list[tuple[str, Any, list[str]]]) -> list[tuple[Any, ...]]:
    """Prepare the library's checks of logical lines for `LineChecker`.

    Args:
        checks: name, function and argument names of each check, from `StyleGuide.get_checks`.
    """
    found = []
    for name, check, needed in checks:
        arguments = needed
        if name == "maximum_doc_length":
            # It finds nothing, because no maximum is set.
            continue
        if name == "blank_lines":
            arguments = ["lines_upwards" if each == "lines" else each for each in needed]
        state = name if "checker_state" in arguments else None
        gate = _GATES.get(name)
        found.append((_linear_checks().get(name, check), gate, _values(arguments), state, name in _LEFT_OUT))
    return found


def _values(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) > 1:
        return attrgetter(*names)
    value = attrgetter(names[0])
    return lambda checker: (value(checker),)


class _LinesUpwards(list[str]):
    """The lines of a file for `blank_lines`, which searches upwards from each method for what encloses it.

    A slice yields, from its first line upwards, only lines that are indented less than all those before. The others
    cannot change what the check finds, and it would scan whole classes for each of their methods.
    """

    _outer: list[int] | None = None

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            return super().__getitem__(index)
        return self._upwards(range(len(self))[index][0]) if range(len(self))[index] else []

    def _upwards(self, row: int) -> Iterator[str]:
        if self._outer is None:
            self._outer = self._next_outer()
        while row >= 0:
            yield super().__getitem__(row)
            row = self._outer[row]

    def _next_outer(self) -> list[int]:
        """Return for each line the last earlier line that is indented less, or -1; a blank line gets an open one."""
        found: list[int] = []
        open_rows: list[tuple[int, int]] = []
        for row, line in enumerate(self):
            if not line.strip():
                found.append(open_rows[-1][1] if open_rows else -1)
                continue
            indent = pycodestyle.expand_indent(line)
            while open_rows and open_rows[-1][0] >= indent:
                open_rows.pop()
            found.append(open_rows[-1][1] if open_rows else -1)
            open_rows.append((indent, row))
        return found


def _compares(line: LineChecker) -> bool:
    return "==" in line.logical_line or "!=" in line.logical_line


def _blank_lines(line: LineChecker) -> bool:
    # The first letter of "async def", "def", "class" or a decorator; an empty line passes too.
    return line.blank_lines > 0 or not line.indent_level or line.logical_line[:1] in "adc@"


def _indentation(line: LineChecker) -> bool:
    return (
        line.indent_level > line.previous_indent_level
        or line.indent_level % line.indent_size > 0
        or line.previous_logical.endswith(":")
    )


def _compound(line: LineChecker) -> bool:
    return ";" in line.logical_line or -1 < line.logical_line.find(":") < len(line.logical_line) - 1


def _has_spaces(line: LineChecker) -> bool:
    return _TWO_SPACES.search(line.logical_line) is not None


# The condition under which each check could find something.
_GATES: dict[str, Callable[[LineChecker], bool]] = {
    "blank_lines": _blank_lines,
    "extraneous_whitespace": lambda line: (
        line.logical_line[:1] == "@" or pycodestyle.EXTRANEOUS_WHITESPACE_REGEX.search(line.logical_line) is not None
    ),
    "whitespace_around_keywords": _has_spaces,
    "missing_whitespace_after_keyword": lambda line: not _KEYWORDS.isdisjoint(line.texts),
    "indentation": _indentation,
    "continued_indentation": lambda line: not line.one_row,
    "whitespace_before_parameters": lambda line: _BRACKET_AFTER_SPACE.search(line.logical_line) is not None,
    "whitespace_around_operator": _has_spaces,
    "missing_whitespace": lambda line: not _OPERATORS.isdisjoint(line.texts),
    "whitespace_around_comma": _has_spaces,
    "whitespace_around_named_parameter_equals": lambda line: "=" in line.texts,
    "whitespace_before_comment": lambda line: any(text[:1] == "#" for text in line.texts),
    "imports_on_separate_lines": lambda line: line.logical_line.startswith("import "),
    "module_imports_on_top_of_file": lambda line: not line.indent_level,
    "compound_statements": _compound,
    "explicit_line_join": lambda line: not line.one_row,
    "break_before_binary_operator": lambda line: not line.one_row,
    "break_after_binary_operator": lambda line: not line.one_row,
    "comparison_to_singleton": _compares,
    "comparison_negative": lambda line: "not" in line.logical_line and _IS_OR_IN.search(line.logical_line) is not None,
    "comparison_type": lambda line: "type" in line.logical_line and _compares(line),
    "bare_except": lambda line: line.logical_line.startswith("except"),
    "ambiguous_identifier": lambda line: not _AMBIGUOUS.isdisjoint(line.texts),
    "python_3000_invalid_escape_sequence": lambda line: any("\\" in text for text in line.texts),
}


@cache
def _linear_checks() -> dict[str, Callable[..., Any]]:
    """Return linear replacements, with the same findings, of checks that are quadratic in the length of a line."""
    words = "|".join(pycodestyle.KEYWORDS)
    return {
        # Match a run of spaces only from its beginning, and possessively.
        "whitespace_around_keywords": _with(
            pycodestyle.whitespace_around_keywords,
            KEYWORD_REGEX=re.compile(rf"(?:(?<!\s)|(?=\w))(\s*+)\b(?:{words})\b(\s*)"),
        ),
        # What precedes the operator matters only if it is one of the three names.
        "comparison_to_singleton": _with(
            pycodestyle.comparison_to_singleton,
            COMPARE_SINGLETON_REGEX=re.compile(r"(?:(\bNone|\bFalse|\bTrue)\s*+)?([=!]=)\s*(?(1)|(None|False|True))\b"),
        ),
        "compound_statements": _with(pycodestyle.compound_statements, LAMBDA_REGEX=_FirstLambda()),
        "python_3000_invalid_escape_sequence": _invalid_escapes,
    }


def _with(check: Any, **others: Any) -> FunctionType:
    """Return a copy of the library's function with some of its module's globals replaced."""
    return FunctionType(check.__code__, {**check.__globals__, **others}, check.__name__)


class _FirstLambda:
    """Replaces a pattern that the library searches from the start of a line to each of its colons in turn."""

    def __init__(self) -> None:
        self._line: str | None = None
        self._found: re.Match[str] | None = None

    def search(self, line: str, _start: int, end: int) -> re.Match[str] | None:
        if line is not self._line:
            self._line, self._found = line, pycodestyle.LAMBDA_REGEX.search(line)
        return self._found if self._found is not None and self._found.end() <= end else None


def _invalid_escapes(_logical_line: str, tokens: list[Any], noqa: Any) -> Iterator[tuple[tuple[int, int], str]]:
    """Do what `python_3000_invalid_escape_sequence` does, but count the rows of a string once."""
    if noqa:
        return
    prefixes: list[str] = []
    for kind, text, start, _, _ in tokens:
        if kind == tokenize.STRING or kind in _STRING_STARTS:
            prefixes.append(text[: text.index(text[-1])].lower())
        if (kind == tokenize.STRING or kind in _STRING_MIDDLES) and "r" not in prefixes[-1]:
            row, counted, line = start[0], 0, -start[1]
            position = text.find("\\")
            while position >= 0:
                position += 1
                if text[position] not in pycodestyle._PYTHON_3000_VALID_ESC:
                    if ended := text.count("\n", counted, position):
                        row, line = row + ended, text.rfind("\n", counted, position) + 1
                    counted = position
                    yield (row, position - 1 - line), "W605 invalid escape sequence"
                position = text.find("\\", position + 1)
        if kind == tokenize.STRING or kind in _STRING_ENDS:
            prefixes.pop()


_STRING_MIDDLES = frozenset({pycodestyle.FSTRING_MIDDLE, pycodestyle.TSTRING_MIDDLE})
