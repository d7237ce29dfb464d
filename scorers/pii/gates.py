"""Gates: cheap tests of whether a detector could match a sentence; they skip only what cannot match.

The detectors' patterns ignore case, and `re.IGNORECASE` is not `lower()`: it also matches s, i and k with ſ (U+017F), ı
and İ (U+0131, U+0130), and K (the Kelvin sign, U+212A), and a digit is a digit of any script. `Clues` folds a sentence
so that whatever an ASCII word matches becomes that word; a gate can then search for the word, some hundred times faster
than the pattern. One pattern for everything that gates look for would be slower than these searches.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

# `lower()` turns İ into two characters and does not change the other two. (It does turn the Kelvin sign into k.)
_FOLDS = str.maketrans({"İ": "i", "ı": "i", "ſ": "s"})

_DIGIT = re.compile(r"\d")
_AT = re.compile(r"@|\sat\s")
_EXTENSION = re.compile(r"\d[\s,;]*+(?:e?xt|int|anexo)")
_LETTERS = re.compile(r"[a-z]+")
_SECRET = re.compile(r"\s(?:password|pw|p:)")

# Fewest digits in a valid phone number: with a plus and the country code (Germany, Austria, Iran); and without, as in
# Canada's 310-1234, valid in all of North America (a foreign number would need 011 and six digits).
FEWEST_WITH_PLUS = 6
FEWEST_WITHOUT_PLUS = 7

Gate = Callable[["Clues"], bool]


@dataclass(slots=True)
class Clues:
    """What gates test, computed once per sentence.

    Attributes:
        text: the sentence.
        folded: the sentence in lower case, at the same length, with letters that `re.IGNORECASE` equates with ASCII
            ones replaced by those.
        digits: number of decimal digits of any script.
    """

    text: str
    folded: str
    digits: int

    @classmethod
    def of(cls, text: str) -> "Clues":
        """Return the clues of a sentence."""
        folded = text.lower() if text.isascii() else text.translate(_FOLDS).lower()
        return cls(text, folded, len(_DIGIT.findall(text)))


def may_hold_credential(clues: Clues) -> bool:
    """Return whether the sentence has a word for a user, and a word for a password after white space."""
    folded = clues.folded
    return (
        ("u:" in folded or "login" in folded or "username" in folded)
        and ("p:" in folded or "pw" in folded or "password" in folded)
        and _SECRET.search(folded) is not None
    )


def may_hold_credit_card(clues: Clues) -> bool:
    """Return whether the sentence has at least thirteen digits."""
    return clues.digits >= 13


def may_hold_email(clues: Clues) -> bool:
    """Return whether the sentence has an @ or the word `at`, and a dot or the word `dot`."""
    folded = clues.folded
    return ("." in folded or "dot" in folded) and ("@" in folded or ("at" in folded and _AT.search(folded) is not None))


def may_hold_phone(clues: Clues) -> bool:
    """Return whether the sentence has enough digits for a valid number, or a digit before the word for an extension.

    phonenumbers reads letters as digits, as in 1-800-FLOWERS, if there are at least three. Its matcher allows no
    letters in a number except x, as punctuation, and those of an extension: it takes "+683 6int" for a number on Niue.
    """
    if not clues.digits:
        return False
    fewest = FEWEST_WITH_PLUS if "+" in clues.text or "＋" in clues.text else FEWEST_WITHOUT_PLUS
    return clues.digits + clues.folded.count("x") >= fewest or _EXTENSION.search(clues.folded) is not None


def may_hold_social_security_number(clues: Clues) -> bool:
    """Return whether the sentence has nine digits."""
    return clues.digits >= 9


def may_hold_twitter(clues: Clues) -> bool:
    """Return whether the sentence has an @."""
    return "@" in clues.text


def may_hold_url(clues: Clues) -> bool:
    """Return whether the sentence has the start of a web address; this pattern is case-sensitive."""
    return "www." in clues.text or "http://" in clues.text or "https://" in clues.text


def may_hold_skype(clues: Clues) -> bool:
    """Return whether the sentence has the word "skype", also inside another word."""
    return "skype" in clues.folded


def may_hold_birth_date(clues: Clues) -> bool:
    """Return whether the sentence has one of the words that must stand near the date, also inside another word.

    The whole sentence is then searched, because what dateparser takes for a date depends on the text around it.
    """
    folded = clues.folded
    return "born" in folded or "birth" in folded or "dob" in folded or "d.o.b." in folded


class AddressGate:
    """Requires a street type, and a state's name or its two capitals, which every address has.

    It reads pyap's own lists, so it stays in step with them.
    """

    def __init__(self) -> None:
        from pyap.source_US import data

        self._streets = frozenset(each.lower() for each in data.street_type_list)
        # The pattern is `(?P<region1>(?:AL|AK|...)|(?:[Aa][Ll][Aa][Bb][Aa][Mm][Aa]|...))`, with comments and newlines.
        pattern = re.sub(r"#.*|(?<!\\)\s", "", data.region1.replace("?P<region1>", ""))
        plain = re.sub(r"\[[A-Z]([a-z])\]", r"\1", pattern).replace("\\ ", " ")
        self._names = tuple(re.findall(r"[a-z][a-z ]+", plain))
        self._capitals = re.compile("|".join(re.findall(r"\b[A-Z]{2}\b", plain)))

    def __call__(self, clues: Clues) -> bool:
        """Return whether the sentence has both."""
        if self._streets.isdisjoint(_LETTERS.findall(clues.folded)):
            return False
        # pyap's copy of the text has one blank between the words of a name.
        flat = " ".join(clues.folded.split())
        return self._capitals.search(clues.text) is not None or any(name in flat for name in self._names)
