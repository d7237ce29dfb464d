"""Find Skype names by scrubadub's rule: misspelt words near the word "skype".

scrubadub takes the ten tokens before and after each token that contains "skype"; it searches the whole text for those
that are long enough for a name and misspelt, as patterns in which a dot is any character.
"""

import re
from collections.abc import Iterator

from scorers.pii.spelling import Spelling
from scorers.spans import Span

_SHORTEST_NAME = 6


class SkypeFinder:
    """Finds names such as "lkjhgf_98" in "My skype is lkjhgf_98"."""

    def __init__(self) -> None:
        from scrubadub.detectors.skype import SkypeDetector

        self._token = re.compile(SkypeDetector.SKYPE_TOKEN)
        self._radius: int = SkypeDetector.word_radius
        self._spelling = Spelling()

    def spans(self, text: str) -> Iterator[Span]:
        """Yield half-open spans of names in code points of `text`."""
        tokens = self._token.findall(text)
        places = [index for index, token in enumerate(tokens) if "skype" in token.lower()]
        near: dict[str, None] = {}
        for place in places:
            near.update(dict.fromkeys(tokens[max(place - self._radius, 0) : place]))
            near.update(dict.fromkeys(tokens[place + 1 : place + self._radius + 1]))
        # A name in capitals is lowered for the spell-checker, and then, as in scrubadub, found only in lower case.
        likely = dict.fromkeys(
            token.lower() if token.isupper() else token for token in near if len(token) >= _SHORTEST_NAME
        )
        names = [token for token in likely if self._spelling.is_misspelt(token)]
        if names:
            yield from (match.span() for match in re.finditer("|".join(names), text))
