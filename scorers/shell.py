"""Commands that are printed for people to paste into a shell: every word is what it was, whatever is in it."""

import re
import shlex

# What a line cannot hold, or a terminal would act on; see `scorers.printing`, which would show it as an escape.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def quoted(word: object) -> str:
    """A word as bash, zsh and ksh read it: as it is where nothing in it is special, else in quotes.

    Args:
        word: a path, a URI, an option's value; bytes of a path that are no UTF-8 may be in it as Python has them.
    """
    text = str(word)
    if not _CONTROLS.search(text):
        return shlex.quote(text)
    plain = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{_CONTROLS.sub(lambda each: _escaped(each[0]), plain)}'"


def phf(*words: object) -> str:
    """A command of phf on one line, each word `quoted`."""
    return " ".join(("phf", *map(quoted, words)))


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"
