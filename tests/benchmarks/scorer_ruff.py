"""The scorer `ruff` on one core against pycodestyle's own `Checker`, and their agreement by line and code."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from ruff import find_ruff_bin

from scorers.contract import ScoringError
from scorers.registry import ScorerSpec, build
from tests.benchmarks.measure import Comparison, compare
from tests.benchmarks.references import pep8
from tests.benchmarks.text import code

FILES = 400


def run() -> Iterator[Comparison]:
    texts = code(FILES)
    megabytes = sum(map(len, texts)) / 1e6
    for label, select in (("E, W and PL", ["E", "W", "PL"]), ("E and W", ["E", "W"])):
        scorer = build("fast", ScorerSpec(kind="ruff", select=select))
        result = compare(
            f"ruff {label} / pep8, {len(texts)} files",
            "MB/s",
            megabytes,
            lambda scorer=scorer: scorer.violations(texts),  # type: ignore[misc]
            lambda: [pep8.violations(text) for text in texts],
            rounds=3,
        )
        yield replace(result, agreement=_agreement(scorer.violations(texts), texts))


def _agreement(found: list[list[tuple[int, str]] | ScoringError], texts: list[str]) -> str:
    codes = _codes()
    lines = same = flagged = same_flagged = 0
    different: Counter[str] = Counter()
    for each, text in zip(found, texts, strict=True):
        assert not isinstance(each, ScoringError)
        ours: dict[int, set[str]] = {}
        theirs: dict[int, set[str]] = {}
        for line, name in each:
            if codes.get(name, "E999")[0] in "EW":
                ours.setdefault(line, set()).add(codes.get(name, "E999"))
        for line, one in pep8.violations(text):
            theirs.setdefault(line, set()).add(one)
        lines += text.count("\n") + 1
        for line in {*ours, *theirs}:
            flagged += 1
            same_flagged += ours.get(line) == theirs.get(line)
            different.update(ours.get(line, set()) ^ theirs.get(line, set()))
    same = lines - flagged + same_flagged
    most = ", ".join(f"{one} {count}" for one, count in different.most_common(5))
    return (
        f"with pep8, by line and code: {same / lines:.1%} of {lines:,} lines, "
        f"{same_flagged / flagged:.1%} of {flagged:,} flagged ones; most different: {most}"
    )


def _codes() -> dict[str, str]:
    printed = subprocess.run(
        [find_ruff_bin(), "rule", "--all", "--output-format=json"], capture_output=True, check=True
    )
    return {rule["name"]: rule["code"] for rule in json.loads(printed.stdout)}
