"""Dates of birth, as scrubadub finds them, but on a fixed day.

scrubadub's detector takes every date in the text that dateparser can read, and keeps those that make a person 18 to
100 years old and stand within two lines after, or one before, a word such as "born". It asks the clock three times: for
what "twenty years ago" or a date without a year means, for the age, and again when the finding is validated. Here all
three use `reference_date`.
"""

import re
from collections.abc import Iterator
from datetime import date, datetime, time
from typing import Any

from scorers.spans import Span


class BirthDateFinder:
    """Finds the spans of dates of birth.

    Unlike scrubadub's, it does not complete a date without a year from the date before it: dateparser does not when it
    is told which day it is.

    Args:
        reference_date: the day on which ages are counted.
    """

    def __init__(self, reference_date: date) -> None:
        import dateparser
        from dateparser.search import search_dates
        from scrubadub.detectors.date_of_birth import DateOfBirthDetector
        from scrubadub.filth.date_of_birth import DateOfBirthFilth

        self._year = reference_date.year
        # Dates with a time zone would be moved to the zone of the machine otherwise.
        settings = {"RELATIVE_BASE": datetime.combine(reference_date, time()), "TIMEZONE": "UTC"}
        self._detector: Any = DateOfBirthDetector(locale="en_US")
        self._ages = range(DateOfBirthFilth.min_age_years, DateOfBirthFilth.max_age_years + 1)
        self._search: Any = lambda text: search_dates(text, languages=["en"], settings=settings)
        self._parser: Any = dateparser.DateDataParser(settings=settings)

    def spans(self, text: str) -> list[Span]:
        """Half-open spans of dates of birth in code points of `text`."""
        near = [line for line, is_near in self._lines(text) if is_near]
        # scrubadub reports every occurrence of a date once for every time that it is written: a square of them.
        moments = dict.fromkeys(self._search(text) or ()) if near else {}
        dates = dict.fromkeys(
            # A leading plus makes a phone number likelier.
            string
            for string, moment in moments
            if not string.startswith("+") and self._is_age(moment) and any(string in line for line in near)
        )
        return [match.span() for each in dates if self._is_valid(each) for match in re.finditer(re.escape(each), text)]

    def _lines(self, text: str) -> Iterator[tuple[str, bool]]:
        """The lines, and whether a word such as "born" is in the line, in one of the two before or the one after."""
        detector = self._detector
        lines = text.split("\n")
        says = [any(word in line.lower() for word in detector.context_words) for line in lines]
        for index, line in enumerate(lines):
            yield line, any(says[max(index - detector.context_before, 0) : index + detector.context_after + 1])

    def _is_age(self, moment: datetime) -> bool:
        return self._year - moment.year in self._ages

    def _is_valid(self, string: str) -> bool:
        parsed = self._parser.get_date_data(string)["date_obj"]
        return parsed is not None and self._is_age(parsed)
