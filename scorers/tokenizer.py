"""Avoid the quadratic time of spaCy's tokenizer on long runs of characters without white space.

spaCy strips punctuation from both ends of each such run, one mark at a time, and searches the whole rest of the run
each time: 20,000 opening parentheses take it 50 seconds, in C code that no signal interrupts.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

# More than twice the longest bounded suffix with its look-behind (ten characters in spaCy 3.8).
_WINDOW = 100

LONGEST_RUN = 10_000
_HALF = LONGEST_RUN // 2
_LONG_RUN = re.compile(rf"(?<!\S)\S{{{LONGEST_RUN + 1},}}")


def make_linear(tokenizer: Any) -> None:
    """Make a `spacy.tokenizer.Tokenizer` find the same prefixes and suffixes without searching the whole run."""
    # Every prefix pattern begins with ^, so `match` finds what `search` does without trying the other positions.
    tokenizer.prefix_search = tokenizer.prefix_search.__self__.match
    search = tokenizer.suffix_search.__self__.search

    def search_end(text: str) -> re.Match[str] | None:
        match: re.Match[str] | None = search(text[-_WINDOW:])
        if match is not None and match.start() < _WINDOW // 2 < len(text) - _WINDOW // 2:
            # An unbounded pattern, such as a run of dots, may reach further back.
            match = search(text)
        return match

    tokenizer.suffix_search = search_end


@dataclass(frozen=True)
class Removed:
    """Where characters were removed: positions `at` in the short text, and the `total` removed up to each."""

    at: list[int] = field(default_factory=list)
    total: list[int] = field(default_factory=list)

    def original(self, position: int) -> int:
        """Map a position in the short text to the original text."""
        index = bisect_right(self.at, position)
        return position + (self.total[index - 1] if index else 0)


def shorten_runs(text: str) -> tuple[str, Removed]:
    """Remove the middle of every run of more than `LONGEST_RUN` characters without white space.

    Inside such a run sentences begin only in its first or last 5,000 characters, which differs from spaCy: its time for
    a run, and that of its URL pattern, is still quadratic.
    """
    kept: list[str] = []
    removed = Removed()
    done = 0
    length = 0
    for run in _LONG_RUN.finditer(text):
        kept.append(text[done : run.start() + _HALF])
        length += len(kept[-1])
        done = run.end() - _HALF
        removed.at.append(length)
        removed.total.append(done - length)
    return ("".join([*kept, text[done:]]), removed) if kept else (text, removed)
