"""Postal addresses of the United States, by pyap's patterns: a detector of our own.

pyap reports where it found an address in a text that it has normalised before; here the spans are those of the text
itself.
"""

import re
from typing import Any


class AddressFinder:
    """Finds addresses such as "225 E. John Carpenter Freeway, Suite 1500 Irving, Texas 75062"."""

    def __init__(self) -> None:
        from pyap.parser import AddressParser

        parser = AddressParser(country="US")
        self._normalise: Any = parser._normalize_string
        # Compiled once: it takes a quarter of a second, and `re` forgets patterns after some hundred others.
        self._pattern = re.compile(parser.rules, re.VERBOSE | re.UNICODE)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Half-open spans of addresses in code points of `text`."""
        normal = self._normalise(text)
        matches = [match.span() for match in self._pattern.finditer(normal)]
        if not matches:
            return []
        # Normalising changes white space, commas and the form of dashes, and so keeps the order of all that is left.
        solid = _solid(text)
        counts = [0]
        for character in normal:
            counts.append(counts[-1] + _is_solid(character))
        return [(solid[counts[start]], solid[counts[end] - 1] + 1) for start, end in matches]


def _solid(text: str) -> list[int]:
    return [index for index, character in enumerate(text) if _is_solid(character)]


def _is_solid(character: str) -> bool:
    return not (character.isspace() or character == ",")
