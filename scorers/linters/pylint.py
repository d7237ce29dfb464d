"""Kind `pylint`: pylint's messages per character, line by line.

A linter is reused for many documents; each document is a whole run, from opening the checkers to closing them. No
configuration file is read. `DISABLED` lists the messages that do not count, and why; `pylint_world.py` limits what the
linter can import.
"""

import gc
import math
import platform
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from scorers.attempt import attempt
from scorers.contract import Document, DocumentKind, Execution, ScoringError, SemanticOptions
from scorers.errors import UserError
from scorers.fingerprint import fingerprint, library_versions
from scorers.linters import pylint_world
from scorers.linters.lines import REST, Violation, line_of_syntax_error, locate, per_character, refuse_too_long
from scorers.requirements import require
from scorers.spans import Located

_REVISION = 3

DISABLED = {
    # Whether an import resolves depends on the machine, not on the code.
    "import-error": "what is installed",
    "no-name-in-module": "what is installed",
    "no-member": "what is installed",
    "c-extension-no-member": "what is installed",
    "preferred-module": "configuration",
    # isort distinguishes first party from third party by the files in the working directory.
    "wrong-import-order": "what is installed",
    "ungrouped-imports": "what is installed",
    # A document is a single file of an unknown package.
    "relative-beyond-top-level": "the package around the file",
    "cyclic-import": "other files",
    "duplicate-code": "other files",
    "non-ascii-file-name": "the file's name",
    # Spelling is checked only if a dictionary is installed.
    "wrong-spelling-in-comment": "what is installed",
    "wrong-spelling-in-docstring": "what is installed",
    "invalid-characters-in-docstring": "what is installed",
    # A failure of pylint is not a fault of the code.
    "method-check-failed": "pylint itself",
}

# Messages about undefined names. After `from MODULE import *` a name may come from the module, unless pylint sees the
# whole module.
_OF_NAMES = frozenset(
    {"undefined-variable", "undefined-all-variable", "global-variable-undefined", "used-before-assignment"}
)
_WILDCARD = re.compile(r"import[\s\\]*\*")

# A comment such as "coding: latin-1" declares an encoding of bytes, but a document is text.
_CODING = re.compile(r"(?a)\A((?:[ \t\f]*(?:#[^\r\n]*)?\r?\n)?[ \t\f]*#.*?)coding(?=[:=][ \t]*[-\w.]+)")

_RECURSION = 2000

# Documents after which the linter is replaced: some checkers keep every class that they have seen.
_RENEWED_AFTER = 100

# New objects after which Python collects the youngest generation. A file's tree is full of cycles, and none of them can
# be freed before the file is done: the usual threshold of 700 costs a sixth of the time.
_GC_THRESHOLD = 50_000


class PylintOptions(SemanticOptions):
    """Options of `pylint`.

    Attributes:
        disable: names, ids or categories of messages that do not count, besides those that never do.
    """

    disable: list[str] = Field(default_factory=list)


class PylintScorer:
    """Messages on a line divided by its characters, the terminator included.

    Code that does not parse has one message, on the line where Python's parser stops.
    """

    Options = PylintOptions
    main_option: str | None = None
    runs_on_gpu = False
    redacts = False
    documents: DocumentKind | None = "python"

    def __init__(self, name: str, options: PylintOptions, execution: Execution) -> None:
        self.name = name
        self._options = options
        self._deadline_s = execution.deadline_s
        self.check(options)
        self._linter = _Linter(options)
        self._checked = 0
        self._failed = False
        self.fingerprint = fingerprint(
            "pylint",
            options.model_dump(mode="json"),
            revision=_REVISION,
            libraries={**library_versions("pylint", "astroid"), "python": platform.python_version()},
        )

    @classmethod
    def check(cls, _options: PylintOptions) -> None:
        """Raise `UserError` if something needed here is missing."""
        require("pylint", "pylint", "astroid", install="pylint")

    def applies(self, document: Document) -> bool:
        """Return whether the document is Python."""
        return document.kind == self.documents

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        """Score each document on its own."""
        # Enter it outside the documents' deadlines, which may interrupt anything.
        with surroundings():
            return [attempt(self._score_one, document, self._deadline_s) for document in documents]

    def locate(self, documents: Sequence[Document]) -> list[Located | ScoringError]:
        """Score and locate each document on its own.

        A message covers what pylint says, up to the end of its first line; without an end, the rest of the line.
        """
        with surroundings():
            return [attempt(self._locate_one, document, self._deadline_s) for document in documents]

    def _score_one(self, document: Document) -> NDArray[np.float32]:
        return per_character(document, [each.line for each in self.places(document.text)])

    def _locate_one(self, document: Document) -> Located:
        return locate(document, self.places(document.text))

    def messages(self, text: str) -> list[tuple[int, str]]:
        """Return the line and the name of each of `places`."""
        return [each[:2] for each in self.places(text)]

    def places(self, text: str) -> list[Violation]:
        """Return the messages by name, in the order of lines.

        The caller must have entered `surroundings`.

        Raises:
            ScoringError: the text is too long, or nested too deeply.
            Exception: whatever pylint or astroid raises if it fails on the text.
        """
        refuse_too_long(text)
        source = _as_file(text)
        error_line = line_of_syntax_error(source)
        if error_line is not None:
            return [Violation(error_line, "syntax-error")]
        with pylint_world.one_document():
            # An interrupted checker may hold any state.
            if self._failed or self._checked == _RENEWED_AFTER:
                self._linter = _Linter(self._options)
                self._checked = 0
            self._failed = True
            try:
                found = self._linter.lint(source)
            except Exception as error:
                if _too_deep(error):
                    raise ScoringError("too-deep", "nested too deeply for pylint") from None
                raise
        self._failed = False
        self._checked += 1
        return sorted(each for each in found if each.rule not in DISABLED)


def _too_deep(error: BaseException | None) -> bool:
    """Return whether an exception is, or was caused by, a `RecursionError`."""
    while error is not None and not isinstance(error, RecursionError):
        error = error.__cause__ or error.__context__
    return error is not None


class _Linter:
    """pylint's linter, with its checkers registered only once."""

    def __init__(self, options: PylintOptions) -> None:
        from pylint.checkers import BaseRawFileChecker, BaseTokenChecker
        from pylint.utils import ASTWalker

        self._linter = _new_linter(options)
        self._checkers = self._linter.prepare_checkers()
        self._walker = ASTWalker(self._linter)
        # Pretend that the message was printed: it would name parts of the document.
        self._walker.exception_msg = True
        for checker in self._checkers:
            checker.open()
            self._walker.add_checker(checker)
        self._of_tokens = [each for each in self._checkers if isinstance(each, BaseTokenChecker)]
        self._of_bytes = [each for each in self._checkers if isinstance(each, BaseRawFileChecker)]

    def lint(self, source: str) -> list[Violation]:
        """Run the linter on a document, from opening its checkers to closing them; return the messages by name."""
        from astroid.astroid_manager import MANAGER
        from astroid.builder import AstroidBuilder
        from pylint.typing import FileItem
        from pylint.utils import LinterStats

        path = f"{pylint_world.NAME}.py"
        trees: list[Any] = []

        def build(*_names: Any) -> Any:
            trees.append(AstroidBuilder(MANAGER).string_build(source, pylint_world.NAME, path))
            return trees[0]

        self._linter.stats = LinterStats()
        self._linter.reporter.messages = []
        self._walker.nbstatements = 0
        check = partial(
            self._linter.check_astroid_module,
            walker=self._walker,
            tokencheckers=self._of_tokens,
            rawcheckers=self._of_bytes,
        )
        with warnings.catch_warnings():
            # The parser warns about escapes in strings, for which pylint has its own messages.
            warnings.simplefilter("ignore")
            for checker in self._checkers:
                checker.open()
            self._linter._check_file(build, check, FileItem(pylint_world.NAME, path, path))
            self._linter.stats.statement = self._walker.nbstatements
            for checker in reversed(self._checkers):
                checker.close()
            messages = self._linter.reporter.messages
            if trees and _WILDCARD.search(source):
                first = pylint_world.first_open_wildcard(trees[0])
                messages = [each for each in messages if not _may_be_imported(each, first)]
        lines = source.split("\n")
        return [_place(message, lines) for message in messages]


def _place(message: Any, lines: Sequence[str]) -> Violation:
    column, end = message.column or 0, message.end_column
    if end is None:
        return Violation(message.line, message.symbol, column)
    line = lines[message.line - 1] if 0 < message.line <= len(lines) else ""
    if not line.isascii():
        # A node of the tree, whose columns count bytes of UTF-8.
        content = line.encode(errors="replace")
        column, end = (len(content[:each].decode(errors="ignore")) for each in (column, end))
    return Violation(message.line, message.symbol, column, end if message.end_line == message.line else REST)


def _may_be_imported(message: Any, line: float) -> bool:
    """Return whether a message is about a name that the wildcard import on `line` may define."""
    if message.symbol == "undefined-all-variable":
        # pylint reads `__all__` after the whole module.
        return line < math.inf
    if message.symbol == "used-before-assignment" and message.obj:
        # About a function's own local name, which no import defines.
        return False
    return bool(message.symbol in _OF_NAMES and message.line >= line)


def _as_file(text: str) -> str:
    """Return the text as Python would read it from a file: no byte order mark, and no lone carriage returns."""
    source = re.sub(r"\r(?!\n)", "\n", text.removeprefix("\ufeff"))
    return _CODING.sub(r"\1Coding", source, count=1)


def _new_linter(options: PylintOptions) -> Any:
    from pylint.exceptions import UnknownMessageError
    from pylint.lint import PyLinter
    from pylint.message import MessageDefinitionStore
    from pylint.reporters import CollectingReporter

    # This cache keeps the messages of every earlier linter alive.
    MessageDefinitionStore.get_message_definitions.cache_clear()
    linter = PyLinter()
    linter.load_default_plugins()
    linter.set_reporter(CollectingReporter())
    for name in (*DISABLED, *options.disable):
        try:
            linter.disable(name)
        except UnknownMessageError:
            if name in options.disable:
                raise UserError(f"The option disable names {name!r}, which is not a message of pylint.") from None
    linter.initialize()
    return linter


@contextmanager
def surroundings() -> Iterator[None]:
    """Isolate pylint from its caller, give it a deep stack, and collect garbage rarely."""
    with pylint_world.isolated(), _deep_enough(), _rare_gc():
        yield


@contextmanager
def _rare_gc() -> Iterator[None]:
    usual = gc.get_threshold()
    gc.set_threshold(_GC_THRESHOLD, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


@contextmanager
def _deep_enough() -> Iterator[None]:
    """Allow the same depth of recursion from any caller; Python's usual 1,000 frames are too few on generated code."""
    depth = 0
    frame = sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + _RECURSION)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)
