"""Splitting prose into sentences, against a spaCy pipeline that only does this.

Cold is a process's first pass over a text: each round starts a process for each of the two, which loads its library and
splits one other sentence before the clock starts. Warm is every later pass over the same text, in one process.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from scorers import sentences
from tests.benchmarks.measure import Comparison, compare
from tests.benchmarks.references import sentences as reference
from tests.benchmarks.text import prose

_ROUNDS = 5
_COLD = "import sys; from tests.benchmarks import scorer_sentences as each; each.cold(sys.argv[1])"


def run() -> Iterator[Comparison]:
    texts = [text for text in prose() if len(text) <= reference.LONGEST]
    nlp = reference.pipeline()
    agreement = _agreement(texts, nlp)
    size = sum(len(text.encode()) for text in texts) / 1e6
    rates: dict[str, list[float]] = {"ours": [], "reference": []}
    for _ in range(_ROUNDS):
        for way, found in rates.items():
            found.append(size / _seconds_cold(way))
    yield Comparison("sentences, cold", "MB/s", tuple(rates["ours"]), tuple(rates["reference"]), agreement)
    warm = compare(
        "sentences, warm",
        "MB/s",
        size,
        lambda: [sentences.split(text) for text in texts],
        lambda: reference.ends(nlp, texts),
        rounds=_ROUNDS,
    )
    yield replace(warm, agreement=agreement)


def cold(way: str) -> None:
    """Print the seconds of the first pass over the corpus."""
    texts = [text for text in prose() if len(text) <= reference.LONGEST]
    if way == "ours":
        sentences.split("One. Two.")
        began = time.perf_counter()
        for text in texts:
            sentences.split(text)
    else:
        nlp = reference.pipeline()
        reference.ends(nlp, ["One. Two."])
        began = time.perf_counter()
        reference.ends(nlp, texts)
    sys.stdout.write(json.dumps(time.perf_counter() - began))


def _seconds_cold(way: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", _COLD, way],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=True,
    )
    return float(json.loads(done.stdout))


def _agreement(texts: list[str], nlp: object) -> str:
    expected = reference.ends(nlp, texts)
    differing = sum(sentences.split(text).tolist() != ends for text, ends in zip(texts, expected, strict=True))
    if differing:
        return f"{differing:,} of {len(texts):,} texts differ"
    return f"identical: {sum(map(len, expected)):,} sentences of {len(texts):,} texts"
