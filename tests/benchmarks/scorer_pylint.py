"""Kind `pylint` against its command, a process a file, on files that the scorer sees for the first time.

Each round has other files, and begins with a linter that knows no tree of any module: what reading the standard
library's takes is in the figures. Messages are compared with those of the command with the same messages disabled. They
are the same where a file imports what every document may see (`scorers/linters/pylint_world.py`); the others are
counted apart.
"""

import ast
import time
from collections.abc import Iterator

from scorers.linters import pylint_world
from scorers.linters.pylint import DISABLED, PylintScorer
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
        pylint_world.forget(everything=True)
        scorer = build("style", ScorerSpec(kind="pylint"))
        assert isinstance(scorer, PylintScorer)
        found = scorer.messages_of(chosen)
        between = time.perf_counter()
        expected = [pylint.messages(text, DISABLED) for text in chosen]
        ours.append(len(chosen) / (between - began))
        theirs.append(len(chosen) / (time.perf_counter() - between))
        for text, a, b in zip(chosen, found, expected, strict=True):
            visible = _sees_all(text)
            same += visible and a == b
            messages += len(b) if visible else 0
            apart += not visible
            same_apart += not visible and a == b
    agreement = (
        f"{same} of {len(texts) - apart} files identical, {messages:,} messages; of those that import what "
        f"documents do not see, {same_apart} of {apart}"
    )
    yield Comparison(f"pylint, {ROUNDS} x {FILES} files", "files/s", tuple(ours), tuple(theirs), agreement)


def _sees_all(text: str) -> bool:
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "" if not node.level else "")
    return all(pylint_world.is_visible(name) for name in names if name)
