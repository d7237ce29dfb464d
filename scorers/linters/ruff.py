"""Kind `ruff`: violations of ruff's pycodestyle and pylint rules per character, line by line.

For corpora that are too large for pylint, or even for pycodestyle. One process checks many documents, as numbered files
in a temporary folder, so that no file name comes from the corpus. No configuration is read.

- Preview rules are on: many rules of the `E` family are in preview, and without them ruff finds a thirtieth of what
  pycodestyle finds. What pycodestyle ignores by default is ignored here too.
- Comments turn nothing off: `# noqa`, `# ruff: noqa` and the like are ignored, because a text must not hide its own
  violations. (pycodestyle heeds `# noqa` in some checks, so its scores differ on those lines.)
- Code is read as Python 3.13, whatever Python runs here: the newest version that does not accept Python 2's
  `except A, B:`.
- Code that does not parse has one violation for that, on the line of the first syntax error, besides what ruff finds
  without a tree.
- Code nested so deeply that ruff's stack overflows is not scored (`too-deep`), nor is a text of more than 2,000,000
  characters (`too-long`). A stack overflow ends ruff's process; the other documents are checked again without that one.
"""

import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from scorers.attempt import allowed_seconds
from scorers.contract import Document, DocumentKind, Execution, ScoringError, SemanticOptions
from scorers.errors import UserError
from scorers.fingerprint import fingerprint, library_versions
from scorers.linters.lines import REST, Violation, locate, per_character, too_long
from scorers.requirements import require
from scorers.spans import Located

_REVISION = 1
_PYTHON = "py313"

# Largest batch for one process.
_FILES = 2_000
_CHARACTERS = 4_000_000

# Seconds allowed for a process with several files, plus some for each character, before the batch is halved; a document
# on its own gets its deadline.
_PATIENCE_S = 5.0
_PATIENCE_A_CHARACTER_S = 2e-6

# Stack of each of ruff's threads. An extra file makes ruff check all files in such threads, even a single one, so that
# a stack overflow does not depend on the other files in the batch.
_STACK = 64 << 20
_BESIDE = "beside.py"

_LINE = re.compile(rb"(\d+)\.py:(\d+): \[([\w-]+)\]")
_SYNTAX_ERROR = "invalid-syntax"


class RuffOptions(SemanticOptions):
    """Options of `ruff`.

    Attributes:
        select: prefixes of the rules that count.
        ignore: prefixes of selected rules that do not count.
        preview: whether preview rules count, which most of the whitespace rules are.
        max_line_length: largest width of a line.
    """

    select: list[str] = Field(default=["E", "W", "PL"], min_length=1)
    ignore: list[str] = Field(default=["E226", "E241", "E242"])
    preview: bool = True
    max_line_length: int = Field(default=79, ge=1, le=320)


class RuffScorer:
    """Violations on a line divided by its characters, the terminator included."""

    Options = RuffOptions
    main_option: str | None = None
    runs_on_gpu = False
    redacts = False
    documents: DocumentKind | None = "python"

    def __init__(self, name: str, options: RuffOptions, execution: Execution) -> None:
        self.name = name
        self._deadline_s = execution.deadline_s
        self.check(options)
        self._command = _command(options)
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("RUFF_", "RUST_", "RAYON_"))},
            "RAYON_NUM_THREADS": str(execution.threads),
            "RUST_MIN_STACK": str(_STACK),
        }
        self._refuse_unknown_rules()
        self.fingerprint = fingerprint(
            "ruff", options.model_dump(mode="json"), revision=_REVISION, libraries=library_versions("ruff")
        )

    @classmethod
    def check(cls, _options: RuffOptions) -> None:
        """Raise `UserError` if something needed here is missing."""
        require("ruff", "ruff", install="ruff")

    def applies(self, document: Document) -> bool:
        """Return whether the document is Python."""
        return document.kind == self.documents

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        """Score all documents; none depends on the others in the batch."""
        found = self.violations([document.text for document in documents])
        return [
            each if isinstance(each, ScoringError) else per_character(document, [line for line, _ in each])
            for document, each in zip(documents, found, strict=True)
        ]

    def locate(self, documents: Sequence[Document]) -> list[Located | ScoringError]:
        """Score all documents, and place each violation where ruff does, up to the end of its first line."""
        found = self.places([document.text for document in documents], columns=True)
        return [
            each if isinstance(each, ScoringError) else locate(document, each)
            for document, each in zip(documents, found, strict=True)
        ]

    def violations(self, texts: Sequence[str]) -> list[list[tuple[int, str]] | ScoringError]:
        """Return for each text the line and the rule of each of `places`."""
        return [
            each if isinstance(each, ScoringError) else [violation[:2] for violation in each]
            for each in self.places(texts)
        ]

    def places(self, texts: Sequence[str], *, columns: bool = False) -> list[list[Violation] | ScoringError]:
        """Return for each text its violations, in order; with `columns` also their columns, which takes longer."""
        refused = {index: error for index, text in enumerate(texts) if (error := too_long(text)) is not None}
        found: dict[int, list[Violation] | ScoringError] = {**refused}
        for group in _groups(texts, [index for index in range(len(texts)) if index not in refused]):
            found.update(zip(group, self._run([texts[index] for index in group], columns), strict=True))
        return [found[index] for index in range(len(texts))]

    def _run(self, texts: list[str], columns: bool) -> list[list[Violation] | ScoringError]:
        allowed = allowed_seconds(self._deadline_s, max(map(len, texts)))
        if len(texts) > 1:
            allowed = min(allowed, _PATIENCE_S + _PATIENCE_A_CHARACTER_S * sum(map(len, texts)))
        try:
            return list(self._check_together(texts, allowed, columns))
        except subprocess.TimeoutExpired:
            why = ScoringError("deadline", f"took longer than {allowed:g} s")
        except subprocess.CalledProcessError as error:
            # Rust aborts on a stack overflow.
            deep = error.returncode == -signal.SIGABRT
            why = ScoringError("too-deep" if deep else "scorer-error", f"ruff ended with status {error.returncode}")
        if len(texts) == 1:
            return [why]
        middle = len(texts) // 2
        return self._run(texts[:middle], columns) + self._run(texts[middle:], columns)

    def _check_together(self, texts: list[str], seconds: float, columns: bool) -> Iterator[list[Violation]]:
        found: list[list[Violation]] = [[] for _ in texts]
        with tempfile.TemporaryDirectory(prefix="phf-ruff-") as folder, tempfile.TemporaryFile() as output:
            for number, text in enumerate(texts):
                # Surrogates, which UTF-8 cannot encode, become question marks.
                Path(folder, f"{number}.py").write_bytes(text.encode(errors="replace"))
            Path(folder, _BESIDE).touch()
            subprocess.run(  # noqa: S603 - the arguments are options of this scorer, and no shell reads them
                [*self._command, f"--output-format={'json-lines' if columns else 'pylint'}", "."],
                cwd=folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.DEVNULL,
                timeout=seconds,
                check=True,
            )
            output.seek(0)
            for number, violation in (_read_columns if columns else _read_lines)(output):
                found[number].append(violation)
        for each in found:
            errors = sorted(violation for violation in each if violation.rule == _SYNTAX_ERROR)
            yield sorted([*(violation for violation in each if violation.rule != _SYNTAX_ERROR), *errors[:1]])

    def _refuse_unknown_rules(self) -> None:
        command = [each for each in self._command if each != "--quiet"]
        done = subprocess.run(  # noqa: S603 - as above
            [*command, "-"], env=self._environment, input=b"", capture_output=True, check=False
        )
        stderr = done.stderr.decode(errors="replace")
        # ruff exits with 0 if at least one of the prefixes is known.
        if done.returncode or "Unknown rule selector" in stderr:
            raise UserError(f"ruff refuses the options select or ignore: {' '.join(stderr.split())}")


def _command(options: RuffOptions) -> list[str]:
    from ruff import find_ruff_bin

    return [
        find_ruff_bin(),
        "check",
        "--isolated",
        "--no-cache",
        "--no-respect-gitignore",
        "--config=exclude = []",
        "--quiet",
        "--exit-zero",
        "--no-fix",
        "--ignore-noqa",
        f"--target-version={_PYTHON}",
        f"--line-length={options.max_line_length}",
        f"--select={','.join(options.select)}",
        *([f"--ignore={','.join(options.ignore)}"] if options.ignore else []),
        "--preview" if options.preview else "--no-preview",
    ]


def _read_lines(output: Iterable[bytes]) -> Iterator[tuple[int, Violation]]:
    """Yield the number of the file and the violation of each line in ruff's format `pylint`."""
    for line in output:
        match = _LINE.match(line)
        if match is not None:
            yield int(match[1]), Violation(int(match[2]), match[3].decode())


def _read_columns(output: Iterable[bytes]) -> Iterator[tuple[int, Violation]]:
    """Yield the number of the file and the violation of each line in ruff's format `json-lines`."""
    for line in output:
        found = json.loads(line)
        file = Path(found["filename"])
        if file.name != _BESIDE:
            start, end = found["location"], found["end_location"]
            stop = end["column"] - 1 if end["row"] == start["row"] else REST
            yield int(file.stem), Violation(start["row"], found["code"] or _SYNTAX_ERROR, start["column"] - 1, stop)


def _groups(texts: Sequence[str], indexes: Sequence[int]) -> Iterator[list[int]]:
    """Yield the indexes of the texts for each process, in order."""
    group: list[int] = []
    characters = 0
    for index in indexes:
        size = len(texts[index])
        if group and (len(group) == _FILES or characters + size > _CHARACTERS):
            yield group
            group, characters = [], 0
        group.append(index)
        characters += size
    if group:
        yield group
