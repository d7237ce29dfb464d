"""Quote commands that are printed for people to paste into a shell."""

import re
import shlex

# Characters that a terminal acts on, and that `scorers.printing` would show as escapes.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def quoted(word: object) -> str:
    """Quote a word for bash, zsh and ksh if it needs quotes.

    It may hold surrogates, with which Python decodes the bytes of a path that are not UTF-8.
    """
    text = str(word)
    if not _CONTROLS.search(text):
        return shlex.quote(text)
    plain = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{_CONTROLS.sub(lambda each: _escaped(each[0]), plain)}'"


def phf(*words: object) -> str:
    """Return a phf command on one line, each word `quoted`."""
    return " ".join(("phf", *map(quoted, words)))


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"
