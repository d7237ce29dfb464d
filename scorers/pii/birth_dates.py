"""Dates of birth, as scrubadub finds them, but on a fixed day.

scrubadub's detector takes every date in the text that dateparser can read, and keeps those that make a person 18 to
100 years old and stand within two lines after, or one before, a word such as "born". It asks the clock three times: for
what "twenty years ago" or a date without a year means, for the age, and again when the finding is validated. Here all
three use `reference_date`.
"""

import re
from datetime import date, datetime, time
from typing import Any


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

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Half-open spans of dates of birth in code points of `text`."""
        lines = text.split("\n")
        found: list[tuple[int, int]] = []
        for string, moment in self._search(text) or ():
            # A leading plus makes a phone number likelier.
            if string.startswith("+") or not self._is_age(moment) or not self._in_context(string, lines):
                continue
            parsed = self._parser.get_date_data(string)["date_obj"]
            if parsed is not None and self._is_age(parsed):
                found.extend(match.span() for match in re.finditer(re.escape(string), text))
        return found

    def _is_age(self, moment: datetime) -> bool:
        return self._year - moment.year in self._ages

    def _in_context(self, string: str, lines: list[str]) -> bool:
        detector = self._detector
        for index, line in enumerate(lines):
            if string in line:
                near = lines[max(index - detector.context_before, 0) : index + detector.context_after + 1]
                text = " ".join(near).lower()
                if any(word in text for word in detector.context_words):
                    return True
        return False
