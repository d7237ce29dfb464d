"""Personal data: our scorer against all detectors of the libraries, sentence by sentence, one thread each."""

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import date

from scorers.contract import Document
from scorers.pii.entities import find_model
from scorers.pii.scrubadub import ScrubadubScorer
from scorers.registry import ScorerSpec, build
from scorers.sentences import document
from tests.benchmarks.measure import Comparison, compare
from tests.benchmarks.references.pii import UNUSED, Reference, Span
from tests.benchmarks.text import prose

DAY = date(2026, 1, 1)
MODEL = "en_core_web_sm"

# The size of the sample: the reference takes about a minute for its sentences.
DOCUMENTS_VARIABLE = "PHF_BENCH_PII_DOCUMENTS"
DOCUMENTS = 300


def run() -> Iterator[Comparison]:
    """Compare with every detector, without spaCy's parser on both sides, and without spaCy."""
    texts = prose()
    sample = random.Random(1).sample(texts, min(int(os.environ.get(DOCUMENTS_VARIABLE, DOCUMENTS)), len(texts)))
    documents = [document(text) for text in sample]
    model = find_model(MODEL)
    yield _compare("pii, every detector", documents, "full", Reference(DAY, model))
    yield _compare("pii, no-parser", documents, "no-parser", Reference(DAY, model, (*UNUSED, "parser")))
    yield _compare("pii, without names and organisations", documents, "none", Reference(DAY, None))


def _compare(name: str, documents: list[Document], entities: str, reference: Reference) -> Comparison:
    scorer = build("pii", ScorerSpec(kind="scrubadub", entities=entities, reference_date=str(DAY)))
    assert isinstance(scorer, ScrubadubScorer)
    ours: list[list[Span]] = []
    theirs: list[list[Span]] = []

    def find() -> None:
        ours[:] = [
            [(each.type, each.start, each.end) for each in found]
            for sentences in scorer.findings(documents)
            for found in _checked(sentences)
        ]

    def find_by_reference() -> None:
        theirs[:] = [reference.spans(sentence) for each in documents for sentence in each.sentences()]

    amount = sum(len(each.ends) for each in documents)
    result = compare(name, "sentences/s", amount, find, find_by_reference, rounds=3)
    same = sum(sorted(a) == b for a, b in zip(ours, theirs, strict=True))
    return replace(result, agreement=f"{same:,} of {amount:,} sentences have the same spans and types")


def _checked(found: object) -> list[list[Span]]:
    assert isinstance(found, list), found
    return found
