"""Kind `scrubadub`: spans of personal data a character.

scrubadub's default detectors, its detectors of dates of birth and of Skype names, addresses by pyap, and names and
organisations by spaCy. Each sentence is searched on its own. Findings that overlap or touch are one span, as in
scrubadub itself.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorers.contract import Document, Execution, ScoringError
from scorers.fingerprint import fingerprint, library_versions
from scorers.isolation import attempt
from scorers.pii.addresses import AddressFinder
from scorers.pii.birth_dates import BirthDateFinder
from scorers.pii.entities import EntityRecognizer, find_model
from scorers.requirements import require
from scorers.text import TextOptions

_REVISION = 1

Span = tuple[int, int]

# What `scrubadub.Scrubber(locale="en_US")` loads, and Skype names. Named here because scrubadub's own list grows with
# whatever other packages register.
DETECTORS = ("credential", "credit_card", "email", "phone", "social_security_number", "twitter", "url", "skype")


class ScrubadubOptions(TextOptions):
    """Options of `scrubadub`.

    Attributes:
        reference_date: the day on which ages are counted, so that scores do not depend on the day of the run.
        spacy_model: package or folder of the spaCy pipeline that finds names and organisations.
    """

    reference_date: date = date(2026, 1, 1)
    spacy_model: str = "en_core_web_sm"


class ScrubadubScorer:
    """Spans of personal data in a sentence divided by its characters."""

    Options = ScrubadubOptions
    main_option: str | None = None
    runs_on_gpu = False

    def __init__(self, name: str, options: ScrubadubOptions, execution: Execution) -> None:
        self.name = name
        self._options = options
        self._deadline_s = execution.deadline_s
        self.check(options)
        self._entities = EntityRecognizer(options.spacy_model)
        self._finders: list[Callable[[str], Iterable[Span]]] = [
            *_detectors(),
            BirthDateFinder(options.reference_date).spans,
            AddressFinder().spans,
        ]
        self.fingerprint = fingerprint(
            "scrubadub",
            options.model_dump(mode="json", exclude={"spacy_model"}),
            revision=_REVISION,
            libraries=library_versions("scrubadub", "phonenumbers", "dateparser", "textblob", "pyap", "spacy", "thinc"),
            files={"spacy_model": self._entities.sha256},
        )

    @classmethod
    def check(cls, options: ScrubadubOptions) -> None:
        """Raise `UserError` when something is missing to run here, without loading the model."""
        require("scrubadub", "scrubadub", "dateparser", "phonenumbers", "textblob", install="scrubadub")
        require("scrubadub", "pyap", install="pyap")
        require("scrubadub", "spacy", install="spacy")
        find_model(options.spacy_model)

    def applies(self, document: Document) -> bool:
        """By the option `documents`."""
        return self._options.apply_to(document)

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        """Scores of each document on its own."""
        return [attempt(self._score_one, document, self._deadline_s) for document in documents]

    def _score_one(self, document: Document) -> NDArray[np.float32]:
        sentences = document.sentences()
        counts = [len(merged(spans)) for spans in self.spans(sentences)]
        return np.asarray(
            [count / len(sentence) for count, sentence in zip(counts, sentences, strict=True)], dtype=np.float32
        )

    def spans(self, sentences: Sequence[str]) -> list[list[Span]]:
        """For each sentence what every detector found, in its code points, not yet merged.

        Raises:
            Exception: a detector fails on a sentence; any exception of theirs.
        """
        return [
            [*entities, *(span for find in self._finders for span in find(sentence))]
            for sentence, entities in zip(sentences, self._entities.spans(sentences), strict=True)
        ]


def merged(spans: Iterable[Span]) -> list[Span]:
    """Spans in order, those that overlap or touch made one."""
    result: list[Span] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def _detectors() -> Iterator[Callable[[str], Iterable[Span]]]:
    import scrubadub.detectors.skype

    catalogue = scrubadub.detectors.catalogue.detector_catalogue
    for name in DETECTORS:
        detector = catalogue.get(name)(locale="en_US")

        def find(text: str, detector: Any = detector) -> Iterator[Span]:
            return ((filth.beg, filth.end) for filth in detector.iter_filth(text) if filth.is_valid())

        yield find
