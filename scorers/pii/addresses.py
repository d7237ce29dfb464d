"""Find postal addresses of the United States with pyap's patterns.

pyap reports offsets in a normalised copy of the text; here the spans refer to the text itself. (Searching for the text
of an address, as scrubadub's adapter does, would report n equal addresses n times each.)
"""

import re
from typing import Any

from scorers.spans import Span

# One pass in place of pyap's three steps, two of them quadratic in the length of a run of white space: a run with a
# comma or a line feed becomes a comma and a blank, any other a blank. Then six kinds of dash become one.
_RUN = re.compile(r"[\s,]+")
_DASHES = str.maketrans(dict.fromkeys("‐‑‒–—―", "-"))


class AddressFinder:
    """Finds addresses such as "225 E. John Carpenter Freeway, Suite 1500 Irving, Texas 75062"."""

    def __init__(self) -> None:
        from pyap.source_US import data

        # Compile it once: that takes a quarter of a second, and `re` caches only some hundred patterns.
        self._pattern: Any = re.compile(data.full_address, re.VERBOSE | re.UNICODE)

    def spans(self, text: str) -> list[Span]:
        """Return half-open spans of addresses in code points of `text`."""
        normal = normalise(text)
        matches = [match.span() for match in self._pattern.finditer(normal)]
        if not matches:
            return []
        # Normalising changes only white space, commas and dashes, so all other characters keep their number and order.
        solid = [index for index, character in enumerate(text) if _is_solid(character)]
        counts = [0]
        for character in normal:
            counts.append(counts[-1] + _is_solid(character))
        return [(solid[counts[start]], solid[counts[end] - 1] + 1) for start, end in matches]


def normalise(text: str) -> str:
    """Normalise a text as pyap does before it searches."""
    return _RUN.sub(lambda run: ", " if "," in run[0] or "\n" in run[0] else " ", text).translate(_DASHES)


def _is_solid(character: str) -> bool:
    return not (character.isspace() or character == ",")
