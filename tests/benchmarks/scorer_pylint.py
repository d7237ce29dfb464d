"""The scorer `pylint` against the command, one process per file, on files that the scorer has not seen.

Each round uses other files and starts with an empty cache of syntax trees, so the time includes reading the standard
library's. Messages are compared with those of the command with the same messages disabled. They are equal for files
that only import modules visible to every document (`scorers/linters/pylint_world.py`); other files are counted
separately.
"""

import ast
import time
from collections.abc import Iterator

from scorers.linters import pylint_world
from scorers.linters.pylint import DISABLED, PylintScorer, surroundings
from scorers.registry import ScorerSpec, build
from tests.benchmarks.measure import Comparison
from tests.benchmarks.references import pylint
from tests.benchmarks.text import code

ROUNDS = 3
FILES = 24


def run() -> Iterator[Comparison]:
    texts = code(ROUNDS * FILES)
    ours, theirs = [], []
    same = messages = apart = same_apart = 0
    for number in range(ROUNDS):
        chosen = texts[number::ROUNDS]
        began = time.perf_counter()
        pylint_world.clear_caches(everything=True)
        scorer = build("style", ScorerSpec(kind="pylint"))
        assert isinstance(scorer, PylintScorer)
        with surroundings():
            found = [scorer.messages(text) for text in chosen]
        between = time.perf_counter()
        expected = [pylint.messages(text, DISABLED) for text in chosen]
        ours.append(len(chosen) / (between - began))
        theirs.append(len(chosen) / (time.perf_counter() - between))
        for text, a, b in zip(chosen, found, expected, strict=True):
            visible = _imports_only_visible(text)
            same += visible and a == b
            messages += len(b) if visible else 0
            apart += not visible
            same_apart += not visible and a == b
    agreement = (
        f"{same} of {len(texts) - apart} files identical, {messages:,} messages; of those that import modules that "
        f"documents do not see, {same_apart} of {apart}"
    )
    yield Comparison(f"pylint, {ROUNDS} x {FILES} files", "files/s", tuple(ours), tuple(theirs), agreement)


def _imports_only_visible(text: str) -> bool:
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "" if not node.level else "")
    return all(pylint_world.is_visible(name) for name in names if name)
