"""Personal data the plain way: every detector of the public libraries on every sentence, one sentence at a time.

The detectors are scrubadub's own for `locale="en_US"` with dates of birth and Skype names, pyap's addresses, and the
people and organisations of a spaCy pipeline. Three things must be corrected to have anything to compare with, each in
the plainest way:

- scrubadub computes ages from today's date, and dateparser the meaning of "twenty years ago": both get a fixed day, by
  replacing the clock in their modules while they run.
- pyap reports positions in its own copy of the text, where white space and commas differ: they are mapped back by
  counting the other characters.
- A finding that scrubadub reports several times counts once.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date, datetime, time
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import dateparser
import dateparser.search
import pyap
import scrubadub.detectors.date_of_birth
import scrubadub.detectors.skype
import scrubadub.filth.date_of_birth
import spacy
from pyap.parser import AddressParser

DETECTORS = (
    *("credential", "credit_card", "email", "phone", "social_security_number", "twitter", "url", "skype"),
    "date_of_birth",
)
NAMES = {"PERSON": "name", "PER": "name", "ORG": "organisation"}
UNUSED = ("tagger", "attribute_ruler", "lemmatizer", "senter")

Span = tuple[str, int, int]


class Reference:
    """Find personal data in sentences.

    Args:
        reference_date: the day for which ages are computed.
        model: name or folder of a spaCy pipeline, or None to leave out people and organisations.
        unused: components of the pipeline to exclude.
    """

    def __init__(self, reference_date: date, model: str | None, unused: tuple[str, ...] = UNUSED) -> None:
        catalogue = scrubadub.detectors.catalogue.detector_catalogue
        self._detectors = [catalogue.get(name)(locale="en_US") for name in DETECTORS]
        self._day = reference_date
        self._nlp: Any = None if model is None else spacy.load(model, exclude=unused)

    def spans(self, sentence: str) -> list[Span]:
        """Type, start and end of each finding, in code points of the sentence, sorted and without duplicates."""
        return sorted({*self._filth(sentence), *addresses(sentence), *self._entities(sentence)})

    def _filth(self, sentence: str) -> Iterator[Span]:
        with ExitStack() as clocks:
            for patch in _clocks(self._day):
                clocks.enter_context(patch)
            for detector in self._detectors:
                for filth in detector.iter_filth(sentence):
                    if filth.is_valid():
                        yield filth.type, filth.beg, filth.end

    def _entities(self, sentence: str) -> Iterator[Span]:
        if self._nlp is not None:
            for entity in self._nlp(sentence).ents:
                if entity.label_ in NAMES:
                    yield NAMES[entity.label_], entity.start_char, entity.end_char


def addresses(sentence: str) -> Iterator[Span]:
    """Addresses by pyap, as spans of the sentence itself."""
    found = pyap.parse(sentence, country="US")
    if found:
        solid = [index for index, character in enumerate(sentence) if _is_solid(character)]
        normal = AddressParser(country="US")._normalize_string(sentence)
        for address in found:
            before = sum(map(_is_solid, normal[: address.match_start]))
            inside = sum(map(_is_solid, normal[address.match_start : address.match_end]))
            yield "address", solid[before], solid[before + inside - 1] + 1


def _is_solid(character: str) -> bool:
    return not (character.isspace() or character == ",")


def _clocks(day: date) -> Iterator[Any]:
    class Moment(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.combine(day, time(), tz)

    settings = {"RELATIVE_BASE": datetime.combine(day, time()), "TIMEZONE": "UTC"}
    detector, filth = scrubadub.detectors.date_of_birth, scrubadub.filth.date_of_birth
    yield mock.patch.object(detector, "datetime", Moment)
    yield mock.patch.object(detector, "search_dates", partial(dateparser.search.search_dates, settings=settings))
    yield mock.patch.object(filth, "datetime", SimpleNamespace(date=SimpleNamespace(today=lambda: day)))
    yield mock.patch.object(filth, "dateparser", SimpleNamespace(parse=partial(dateparser.parse, settings=settings)))
