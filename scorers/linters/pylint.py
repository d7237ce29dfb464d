"""Kind `pylint`: pylint's messages a character, line by line.

One linter lives as long as the process; each document is a whole run of it, from opening its checkers to closing them.
No configuration file is read. Which messages count, and why some do not, stands in `DISABLED`; what the linter can see
of the world, in `pylint_world.py`.
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

from scorers.contract import Document, DocumentKind, Execution, ScoringError, SemanticOptions
from scorers.errors import UserError
from scorers.fingerprint import fingerprint, library_versions
from scorers.isolation import attempt
from scorers.linters import pylint_world
from scorers.linters.lines import line_of_syntax_error, per_character, refuse_too_long
from scorers.requirements import require

_REVISION = 3

DISABLED = {
    # Whether an import can be resolved says something of the machine, not of the code.
    "import-error": "what is installed",
    "no-name-in-module": "what is installed",
    "no-member": "what is installed",
    "c-extension-no-member": "what is installed",
    "preferred-module": "configuration",
    # isort tells first from third party by what it finds in the working directory.
    "wrong-import-order": "what is installed",
    "ungrouped-imports": "what is installed",
    # A document is one file, and nobody knows of which package.
    "relative-beyond-top-level": "the package around the file",
    "cyclic-import": "other files",
    "duplicate-code": "other files",
    "non-ascii-file-name": "the file's name",
    # Spelling is checked where a dictionary happens to be installed.
    "wrong-spelling-in-comment": "what is installed",
    "wrong-spelling-in-docstring": "what is installed",
    "invalid-characters-in-docstring": "what is installed",
    # pylint failing is no fault of the code.
    "method-check-failed": "pylint itself",
}

# Messages about names that nothing defines. After `from MODULE import *` a name may come from the module, unless pylint
# sees all that the module holds.
_OF_NAMES = frozenset(
    {"undefined-variable", "undefined-all-variable", "global-variable-undefined", "used-before-assignment"}
)
_WILDCARD = re.compile(r"import[\s\\]*\*")

# A comment such as "coding: latin-1" is about bytes, and a document is text.
_CODING = re.compile(r"(?a)\A((?:[ \t\f]*(?:#[^\r\n]*)?\r?\n)?[ \t\f]*#.*?)coding(?=[:=][ \t]*[-\w.]+)")

_RECURSION = 2000

# Documents that one linter checks: some checkers never forget a class that they saw.
_RENEWED_AFTER = 100

# Objects that are made before Python looks for cycles among the youngest. A file's tree is full of cycles, and none
# of them can be freed before the file is done: its usual 700 cost a sixth of the time.
_GC_THRESHOLD = 50_000


class PylintOptions(SemanticOptions):
    """Options of `pylint`.

    Attributes:
        disable: names, ids or categories of messages that do not count, beside those that never do.
    """

    disable: list[str] = Field(default_factory=list)


class PylintScorer:
    """Messages on a line divided by its characters, the terminator included.

    Code that does not parse has one message, on the line where Python's parser stops.
    """

    Options = PylintOptions
    main_option: str | None = None
    runs_on_gpu = False
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
        """Raise `UserError` when something is missing to run here."""
        require("pylint", "pylint", "astroid", install="pylint")

    def applies(self, document: Document) -> bool:
        """To Python alone."""
        return document.kind == self.documents

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        """Scores of each document on its own."""
        # Outside the deadline of a document, which may end anywhere.
        with _surroundings():
            return [attempt(self._score_one, document, self._deadline_s) for document in documents]

    def _score_one(self, document: Document) -> NDArray[np.float32]:
        return per_character(document, [line for line, _ in self.messages(document.text)])

    def messages_of(self, texts: Sequence[str]) -> list[list[tuple[int, str]]]:
        """The physical line and the name of each message about each text, in the order of lines.

        Raises:
            Exception: as `messages`, about any of them.
        """
        with _surroundings():
            return [self.messages(text) for text in texts]

    def messages(self, text: str) -> list[tuple[int, str]]:
        """As `messages_of`, of one text, for callers that have closed the world around it.

        Raises:
            ScoringError: the text is too long, or nested too deeply.
            Exception: pylint or astroid fails on the text; any exception of theirs.
        """
        refuse_too_long(text)
        source = _as_file(text)
        error_line = line_of_syntax_error(source)
        if error_line is not None:
            return [(error_line, "syntax-error")]
        if self._failed:
            # A checker that was left in the middle may remember anything.
            pylint_world.forget(everything=True)
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
        pylint_world.forget()
        self._failed = False
        self._checked += 1
        return sorted((line, symbol) for line, symbol in found if symbol not in DISABLED)


def _too_deep(error: BaseException | None) -> bool:
    """Whether an exception is, or was raised because of, one of too deep a recursion."""
    while error is not None and not isinstance(error, RecursionError):
        error = error.__cause__ or error.__context__
    return error is not None


class _Linter:
    """pylint's linter with its checkers, looked through only once for what they visit."""

    def __init__(self, options: PylintOptions) -> None:
        from pylint.checkers import BaseRawFileChecker, BaseTokenChecker
        from pylint.utils import ASTWalker

        self._linter = _new_linter(options)
        self._checkers = self._linter.prepare_checkers()
        self._walker = ASTWalker(self._linter)
        # It would print where a checker fails, with names of the document.
        self._walker.exception_msg = True
        for checker in self._checkers:
            checker.open()
            self._walker.add_checker(checker)
        self._of_tokens = [each for each in self._checkers if isinstance(each, BaseTokenChecker)]
        self._of_bytes = [each for each in self._checkers if isinstance(each, BaseRawFileChecker)]

    def lint(self, source: str) -> list[tuple[int, str]]:
        """The line and the name of each message: a run of the linter, from opening its checkers to closing them."""
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
            # Of the parser, on escapes in strings; pylint has messages of its own for them.
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
        return [(message.line, message.symbol) for message in messages]


def _may_be_imported(message: Any, line: float) -> bool:
    """Whether a message is about a name that a wildcard import on a line may have brought."""
    if message.symbol == "undefined-all-variable":
        # `__all__` is read when the module is complete.
        return line < math.inf
    if message.symbol == "used-before-assignment" and message.obj:
        # A function's own name, whatever is imported.
        return False
    return bool(message.symbol in _OF_NAMES and message.line >= line)


def _as_file(text: str) -> str:
    """The text as Python would read it from a file: no byte order mark, no line that ends in a lone carriage return."""
    source = re.sub(r"\r(?!\n)", "\n", text.removeprefix("\ufeff"))
    return _CODING.sub(r"\1Coding", source, count=1)


def _new_linter(options: PylintOptions) -> Any:
    from pylint.exceptions import UnknownMessageError
    from pylint.lint import PyLinter
    from pylint.message import MessageDefinitionStore
    from pylint.reporters import CollectingReporter

    # It holds on to the messages of every linter that there was.
    MessageDefinitionStore.get_message_definitions.cache_clear()
    linter = PyLinter()
    linter.load_default_plugins()
    linter.set_reporter(CollectingReporter())
    for name in (*DISABLED, *options.disable):
        try:
            linter.disable(name)
        except UnknownMessageError:
            if name in options.disable:
                raise UserError(f"The option disable names {name!r}, which is no message of pylint.") from None
    linter.initialize()
    return linter


@contextmanager
def _surroundings() -> Iterator[None]:
    with pylint_world.closed(), _deep_enough(), _rare_gc():
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
    """The same room for recursion whoever calls; pylint runs out of Python's usual 1,000 frames on generated code."""
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
