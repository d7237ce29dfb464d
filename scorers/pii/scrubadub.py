"""Kind `scrubadub`: spans of personal data per character.

It uses scrubadub's default detectors and those of dates of birth and Skype names, pyap for addresses, and spaCy for
names and organisations. Each sentence is searched on its own. Findings that overlap or touch count as one span, as in
scrubadub itself.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import date
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scorers.attempt import allowed_seconds, attempt
from scorers.contract import Document, Execution, ScoringError
from scorers.deadline import DeadlineExceededError, deadline
from scorers.fingerprint import fingerprint, library_versions
from scorers.pii import gates
from scorers.pii.addresses import AddressFinder
from scorers.pii.birth_dates import BirthDateFinder
from scorers.pii.entities import EntityRecognizer, check_folder, find_model
from scorers.pii.patterns import finders
from scorers.pii.skype import SkypeFinder
from scorers.requirements import require
from scorers.spans import Finding, Located, Span, merged, scores_of
from scorers.text import TextOptions

_REVISION = 1

_LIBRARIES = ("scrubadub", "phonenumbers", "dateparser", "textblob", "pyap")


class ScrubadubOptions(TextOptions):
    """Options of `scrubadub`.

    Attributes:
        reference_date: the day on which ages are computed, so that scores do not depend on the day of the run.
        entities: `full` finds names and organisations with the whole spaCy pipeline; `no-parser` skips its parser,
            which is faster and finds others in about one of 150 sentences of the web; `none` finds none.
        spacy_model: package of the spaCy pipeline that finds names and organisations, or a folder, given by a path with
            a slash.
    """

    reference_date: date = date(2026, 1, 1)
    entities: Literal["full", "no-parser", "none"] = "full"
    spacy_model: str = "en_core_web_sm"


class ScrubadubScorer:
    """Spans of personal data in a sentence divided by its characters."""

    Options = ScrubadubOptions
    main_option: str | None = None
    runs_on_gpu = False
    redacts = True

    def __init__(self, name: str, options: ScrubadubOptions, execution: Execution) -> None:
        self.name = name
        self._options = options
        self._deadline_s = execution.deadline_s
        self.check(options)
        self._entities = (
            None
            if options.entities == "none"
            else EntityRecognizer(options.spacy_model, parser=options.entities == "full")
        )
        self._finders: list[tuple[str, gates.Gate, Callable[[str], Iterable[Span]]]] = [
            *finders(),
            ("skype", gates.may_hold_skype, SkypeFinder().spans),
            ("date_of_birth", gates.may_hold_birth_date, BirthDateFinder(options.reference_date).spans),
            ("address", gates.AddressGate(), AddressFinder().spans),
        ]
        self.fingerprint = fingerprint(
            "scrubadub",
            options.model_dump(mode="json", exclude={"spacy_model"}),
            revision=_REVISION,
            libraries=library_versions(*_LIBRARIES, *(("spacy", "thinc") if self._entities else ())),
            files={"spacy_model": self._entities.sha256} if self._entities else {},
        )

    @classmethod
    def check(cls, options: ScrubadubOptions) -> None:
        """Raise `UserError` if something needed here is missing, without loading the model."""
        require("scrubadub", "scrubadub", "dateparser", "phonenumbers", "textblob", install="scrubadub")
        require("scrubadub", "pyap", install="pyap")
        if options.entities != "none":
            require("scrubadub", "spacy", install="spacy")
            find_model(options.spacy_model)

    @classmethod
    def check_recorded(cls, options: ScrubadubOptions, trusted: Collection[str]) -> None:
        """Raise `UserError` for a folder with a spaCy pipeline whose hash is not trusted."""
        if options.entities != "none":
            check_folder(options.spacy_model, trusted)

    def applies(self, document: Document) -> bool:
        """Return whether the option `documents` selects the document."""
        return self._options.apply_to(document)

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        """Return the scores of each document, [n_sentences]."""
        return scores_of(self.locate(documents))

    def locate(self, documents: Sequence[Document]) -> list[Located | ScoringError]:
        """Return the scores of each document with its findings, in its code points; see `findings`."""
        return [
            found if isinstance(found, ScoringError) else _located(document, found)
            for document, found in zip(documents, self.findings(documents), strict=True)
        ]

    def findings(self, documents: Sequence[Document]) -> list[list[list[Finding]] | ScoringError]:
        """Return the findings in each sentence of each document, in its code points, in order.

        Findings of several detectors may overlap; the score counts those that overlap or touch as one. Equal sentences
        are searched once. Names and organisations are searched in all documents together; if that fails, or takes
        longer than all of them may take, in each document on its own, within its own deadline.
        """
        known: dict[str, list[Finding]] = {}
        entities = self._entities_of(documents)

        def search(document: Document) -> list[list[Finding]]:
            sentences = document.sentences()
            names = entities
            if names is None:
                names = self._entities.findings(sentences) if self._entities else {}
            for each in sentences:
                if each not in known:
                    known[each] = sorted({*names.get(each, ()), *self._patterns(each)})
            return [known[each] for each in sentences]

        return [attempt(search, document, self._deadline_s) for document in documents]

    def _entities_of(self, documents: Sequence[Document]) -> dict[str, list[Finding]] | None:
        """Return names and organisations by sentence; None if each document has to be searched on its own."""
        if self._entities is None:
            return {}
        allowed = sum(allowed_seconds(self._deadline_s, len(each.text)) for each in documents)
        try:
            with deadline(allowed):
                return self._entities.findings(sentence for each in documents for sentence in each.sentences())
        except (DeadlineExceededError, Exception):  # noqa: BLE001 - search each on its own to find the one that fails
            return None

    def _patterns(self, sentence: str) -> Iterable[Finding]:
        clues = gates.Clues.of(sentence)
        return (
            Finding(start, end, name)
            for name, gate, find in self._finders
            if gate(clues)
            for start, end in find(sentence)
        )


def _located(document: Document, found: list[list[Finding]]) -> Located:
    ends = document.ends.tolist()
    starts = [0, *ends][:-1]
    rates = [
        len(merged((each.start, each.end) for each in findings)) / (end - start)
        for findings, start, end in zip(found, starts, ends, strict=True)
    ]
    moved = [each.moved(start) for findings, start in zip(found, starts, strict=True) for each in findings]
    return Located(np.asarray(rates, dtype=np.float32), moved)
