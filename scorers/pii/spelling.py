"""textblob's spell-checker, reduced to one question, and some hundred times faster.

textblob generates every string two edits away, a quarter of a million for a word of eight letters, to keep those that
are words. Here words are looked up by their form with one letter left open.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache

_LETTERS = "abcdefghijklmnopqrstuvwxyz"

# Marks the open letter; no word contains it.
_GAP = "\0"

_MOST_REMEMBERED = 20_000


class Spelling:
    """The words of textblob's English dictionary and their frequencies."""

    def __init__(self) -> None:
        from textblob.en import spelling

        if dict.__len__(spelling) == 0:
            spelling.load()
        self._counts: dict[str, int] = dict(dict.items(spelling))
        self._longest = max(map(len, self._counts))
        self._gaps: dict[str, list[str]] = {}
        self.is_misspelt = lru_cache(_MOST_REMEMBERED)(self._is_misspelt)

    def _is_misspelt(self, word: str) -> bool:
        """Return whether textblob's best suggestion for `word` has a confidence below one half.

        Its suggestions are the nearest words, at most two edits away, each weighted by its share of their frequency; if
        there is none, the word itself with a confidence of 0. `word` has at least two characters and starts with a
        letter.
        """
        if len(word) > self._longest + 2:
            return True
        if word in self._counts:
            return False
        words = self._one_edit_away(word) or self._two_edits_away(word)
        counts = [self._counts[each] for each in words]
        return not counts or max(counts) / (float(sum(counts)) or 1) < 0.5

    def _one_edit_away(self, word: str) -> set[str]:
        """Return the words that result from deleting, swapping, replacing or inserting a letter."""
        if not self._gaps:
            self._gaps = self._open_letters()
        found = {each for each in _shorter_or_swapped(word) if each in self._counts}
        for index in range(len(word) + 1):
            before, after = word[:index], word[index:]
            found.update(self._gaps.get(before + _GAP + after, ()))
            if after:
                found.update(self._gaps.get(before + _GAP + after[1:], ()))
        return found

    def _two_edits_away(self, word: str) -> set[str]:
        near = set(_shorter_or_swapped(word))
        for index in range(len(word) + 1):
            before, after = word[:index], word[index:]
            near.update(before + letter + after for letter in _LETTERS)
            if after:
                near.update(before + letter + after[1:] for letter in _LETTERS)
        return set().union(*map(self._one_edit_away, near))

    def _open_letters(self) -> dict[str, list[str]]:
        gaps: defaultdict[str, list[str]] = defaultdict(list)
        for word in self._counts:
            for index, letter in enumerate(word):
                if letter in _LETTERS:
                    gaps[word[:index] + _GAP + word[index + 1 :]].append(word)
        return dict(gaps)


def _shorter_or_swapped(word: str) -> Iterator[str]:
    for index in range(len(word)):
        yield word[:index] + word[index + 1 :]
        if index + 1 < len(word):
            yield word[:index] + word[index + 1] + word[index] + word[index + 2 :]
