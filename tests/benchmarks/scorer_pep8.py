"""The scorer `pycodestyle` against the library's own `Checker`, on real files and on lines of growing length."""

from collections.abc import Iterator
from dataclasses import replace

from scorers.registry import ScorerSpec, build
from tests.benchmarks.measure import Comparison, compare
from tests.benchmarks.references import pep8
from tests.benchmarks.text import code

FILES = 120
LONG_LINE = ("x = [", "a, ", "]\n")


def run() -> Iterator[Comparison]:
    scorer = build("pep8", ScorerSpec(kind="pycodestyle"))
    texts = code(FILES)
    same = sum(scorer.violations(text) == pep8.violations(text) for text in texts)
    found = sum(len(pep8.violations(text)) for text in texts)
    result = compare(
        f"pep8, {len(texts)} files",
        "KB/s",
        sum(map(len, texts)) / 1e3,
        lambda: [scorer.violations(text) for text in texts],
        lambda: [pep8.violations(text) for text in texts],
        rounds=3,
    )
    yield replace(result, agreement=f"{same} of {len(texts)} files identical, {found:,} violations")
    start, middle, end = LONG_LINE
    for kilobytes in (10, 20, 40):
        text = start + middle * (kilobytes * 1_000 // len(middle)) + end
        result = compare(
            f"pep8, a line of {kilobytes} KB",
            "KB/s",
            kilobytes,
            lambda text=text: scorer.violations(text),  # type: ignore[misc]
            lambda text=text: pep8.violations(text),  # type: ignore[misc]
            rounds=3,
        )
        identical = scorer.violations(text) == pep8.violations(text)
        yield replace(result, agreement="identical" if identical else "different")
