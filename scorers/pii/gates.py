"""What a sentence must have before a detector is worth running: each gate can only skip what could not match.

The detectors' patterns ignore case, and `re.IGNORECASE` is not `lower()`: to it the letters s, i and k are also ſ
(U+017F), ı and İ (U+0131, U+0130), and K (the sign of Kelvin, U+212A), and a digit is a digit of any script. `Clues`
folds a sentence so that whatever an ASCII word matches is that word in it; a gate may then look for the word, some
hundred times faster than the pattern. One pattern for all that gates look for would be slower than these searches.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

# `lower()` makes two characters of İ, and leaves the other two alone. (It does turn the Kelvin sign into k.)
_FOLDS = str.maketrans({"İ": "i", "ı": "i", "ſ": "s"})

_DIGIT = re.compile(r"\d")
_AT = re.compile(r"@|\sat\s")
_EXTENSION = re.compile(r"\d[\s,;]*+(?:e?xt|int|anexo)")
_LETTERS = re.compile(r"[a-z]+")
_SECRET = re.compile(r"\s(?:password|pw|p:)")

# The fewest digits of a valid phone number: with a plus and its country code (Germany, Austria, Iran), and without,
# which is Canada's 310-1234, valid in the whole of North America; abroad it would take 011 and six digits.
FEWEST_WITH_PLUS = 6
FEWEST_WITHOUT_PLUS = 7

Gate = Callable[["Clues"], bool]


@dataclass(slots=True)
class Clues:
    """What gates look at, taken once from a sentence.

    Attributes:
        text: the sentence.
        folded: the sentence, of the same length, in lower case, and the letters that `re.IGNORECASE` takes for ASCII
            ones replaced by those.
        digits: how many characters are decimal digits of any script.
    """

    text: str
    folded: str
    digits: int

    @classmethod
    def of(cls, text: str) -> "Clues":
        """The clues of a sentence."""
        folded = text.lower() if text.isascii() else text.translate(_FOLDS).lower()
        return cls(text, folded, len(_DIGIT.findall(text)))


def may_hold_credential(clues: Clues) -> bool:
    """A word for a user, and after white space one for a password."""
    folded = clues.folded
    return (
        ("u:" in folded or "login" in folded or "username" in folded)
        and ("p:" in folded or "pw" in folded or "password" in folded)
        and _SECRET.search(folded) is not None
    )


def may_hold_credit_card(clues: Clues) -> bool:
    """Thirteen digits at least."""
    return clues.digits >= 13


def may_hold_email(clues: Clues) -> bool:
    """The sign @ or the word `at`, and a dot or the word `dot`."""
    folded = clues.folded
    return ("." in folded or "dot" in folded) and ("@" in folded or ("at" in folded and _AT.search(folded) is not None))


def may_hold_phone(clues: Clues) -> bool:
    """As many digits as the shortest valid number has, or a digit before the word for an extension.

    phonenumbers reads letters as digits, as in 1-800-FLOWERS, where there are three of them. Its matcher lets a number
    hold no letters but x, for punctuation, and those of an extension: "+683 6int" is a number on Niue to it.
    """
    if not clues.digits:
        return False
    fewest = FEWEST_WITH_PLUS if "+" in clues.text or "＋" in clues.text else FEWEST_WITHOUT_PLUS
    return clues.digits + clues.folded.count("x") >= fewest or _EXTENSION.search(clues.folded) is not None


def may_hold_social_security_number(clues: Clues) -> bool:
    """Nine digits."""
    return clues.digits >= 9


def may_hold_twitter(clues: Clues) -> bool:
    """The sign @."""
    return "@" in clues.text


def may_hold_url(clues: Clues) -> bool:
    """What an address of the web begins with; this pattern does mind case."""
    return "www." in clues.text or "http://" in clues.text or "https://" in clues.text


def may_hold_skype(clues: Clues) -> bool:
    """The word, in or out of another."""
    return "skype" in clues.folded


def may_hold_birth_date(clues: Clues) -> bool:
    """One of the words that must stand near the date, also inside another word.

    Only then are dates looked for, and in the whole sentence, because what dateparser takes for a date depends on what
    stands around it.
    """
    folded = clues.folded
    return "born" in folded or "birth" in folded or "dob" in folded or "d.o.b." in folded


class AddressGate:
    """A kind of street and a state's name or its two capitals: parts that no address lacks.

    Reads pyap's own lists, so that it cannot fall behind them.
    """

    def __init__(self) -> None:
        from pyap.source_US import data

        self._streets = frozenset(each.lower() for each in data.street_type_list)
        # The pattern is `(?P<region1>(?:AL|AK|...)|(?:[Aa][Ll][Aa][Bb][Aa][Mm][Aa]|...))`, with comments and line ends.
        pattern = re.sub(r"#.*|(?<!\\)\s", "", data.region1.replace("?P<region1>", ""))
        plain = re.sub(r"\[[A-Z]([a-z])\]", r"\1", pattern).replace("\\ ", " ")
        self._names = tuple(re.findall(r"[a-z][a-z ]+", plain))
        self._capitals = re.compile("|".join(re.findall(r"\b[A-Z]{2}\b", plain)))

    def __call__(self, clues: Clues) -> bool:
        """Whether the sentence has both."""
        if self._streets.isdisjoint(_LETTERS.findall(clues.folded)):
            return False
        # Between the words of a name pyap's copy of the text has one blank.
        flat = " ".join(clues.folded.split())
        return self._capitals.search(clues.text) is not None or any(name in flat for name in self._names)
