"""Names on Skype, by scrubadub's rule: odd words near the word "skype".

scrubadub takes the ten tokens before and after each token that holds "skype"; those that could be a name, and that its
spell-checker cannot make sense of, are searched for in the whole text, as patterns in which a dot is any character.
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
        """Half-open spans of names in code points of `text`."""
        tokens = self._token.findall(text)
        places = [index for index, token in enumerate(tokens) if "skype" in token.lower()]
        near: dict[str, None] = {}
        for place in places:
            near.update(dict.fromkeys(tokens[max(place - self._radius, 0) : place]))
            near.update(dict.fromkeys(tokens[place + 1 : place + self._radius + 1]))
        # Capitals are written small, as the spell-checker likes them, and then found only where they are small.
        likely = dict.fromkeys(
            token.lower() if token.isupper() else token for token in near if len(token) >= _SHORTEST_NAME
        )
        names = [token for token in likely if self._spelling.is_misspelt(token)]
        if names:
            yield from (match.span() for match in re.finditer("|".join(names), text))
