"""Find dates of birth as scrubadub does, but relative to a fixed day.

scrubadub's detector takes every date in the text that dateparser can read, and keeps those that make a person 18 to
100 years old and stand within two lines after, or one before, a word such as "born". It reads the clock three times: to
resolve "twenty years ago" or a date without a year, to compute the age, and to validate the finding. Here all three use
`reference_date`.
"""

import re
from collections.abc import Iterator
from datetime import date, datetime, time
from typing import Any

from scorers.spans import Span


class BirthDateFinder:
    """Finds the spans of dates of birth.

    Unlike scrubadub's detector, it does not complete a date without a year from the date before it: dateparser does not
    do so when it is given the current day.

    Args:
        reference_date: the day on which ages are computed.
    """

    def __init__(self, reference_date: date) -> None:
        import dateparser
        from dateparser.search import search_dates
        from scrubadub.detectors.date_of_birth import DateOfBirthDetector
        from scrubadub.filth.date_of_birth import DateOfBirthFilth

        self._year = reference_date.year
        # Without TIMEZONE, dates with a time zone would be converted to the machine's zone.
        settings = {"RELATIVE_BASE": datetime.combine(reference_date, time()), "TIMEZONE": "UTC"}
        self._detector: Any = DateOfBirthDetector(locale="en_US")
        self._ages = range(DateOfBirthFilth.min_age_years, DateOfBirthFilth.max_age_years + 1)
        self._search: Any = lambda text: search_dates(text, languages=["en"], settings=settings)
        self._parser: Any = dateparser.DateDataParser(settings=settings)

    def spans(self, text: str) -> list[Span]:
        """Return half-open spans of dates of birth in code points of `text`."""
        near = [line for line, is_near in self._lines(text) if is_near]
        # scrubadub reports every occurrence of a date as often as the date occurs, which is quadratic.
        moments = dict.fromkeys(self._search(text) or ()) if near else {}
        dates = dict.fromkeys(
            # With a leading plus it is more likely a phone number.
            string
            for string, moment in moments
            if not string.startswith("+") and self._is_age(moment) and any(string in line for line in near)
        )
        return [match.span() for each in dates if self._is_valid(each) for match in re.finditer(re.escape(each), text)]

    def _lines(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yield each line, and whether it, one of the two before or the one after has a word such as "born"."""
        detector = self._detector
        lines = text.split("\n")
        has_word = [any(word in line.lower() for word in detector.context_words) for line in lines]
        for index, line in enumerate(lines):
            yield line, any(has_word[max(index - detector.context_before, 0) : index + detector.context_after + 1])

    def _is_age(self, moment: datetime) -> bool:
        return self._year - moment.year in self._ages

    def _is_valid(self, string: str) -> bool:
        parsed = self._parser.get_date_data(string)["date_obj"]
        return parsed is not None and self._is_age(parsed)
