"""scrubadub's detectors that use a pattern or a library's matcher, each with its gate."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from scorers.pii import gates
from scorers.spans import Span

# The detectors that `scrubadub.Scrubber(locale="en_US")` loads, listed here because other packages can register more.
GATES = {
    "credential": gates.may_hold_credential,
    "credit_card": gates.may_hold_credit_card,
    "email": gates.may_hold_email,
    "phone": gates.may_hold_phone,
    "social_security_number": gates.may_hold_social_security_number,
    "twitter": gates.may_hold_twitter,
    "url": gates.may_hold_url,
}

# scrubadub's own is `(username|login|u:)\s*:?\s*([\w\-\.@+]*)\s+(password|pw|p:)\s*:?\s*(.*)`: three parts can share a
# run of white space, which makes it cubic in the length of the run. A name and a password hold no white space, so
# possessive quantifiers match the same; if the word for the password would be taken for the user's name, the name is
# empty and the white space before that word belongs in front of it.
_SECOND = r"(?:password|pw|p:)"
CREDENTIAL = re.compile(
    rf"(?:username|login|u:)\s*+(?::\s*+)?+(?:[\w\-\.@+]++\s++{_SECOND}|(?<=\s){_SECOND})\s*:?\s*.*",
    re.MULTILINE | re.IGNORECASE,
)


def finders() -> Iterator[tuple[str, gates.Gate, Callable[[str], Iterable[Span]]]]:
    """Yield type, gate and finder of each detector; a finder returns half-open spans in code points of its text."""
    import scrubadub.detectors

    catalogue = scrubadub.detectors.catalogue.detector_catalogue
    for name, gate in GATES.items():
        detector = catalogue.get(name)(locale="en_US")
        if name == "credential":
            detector.regex = CREDENTIAL

        def find(text: str, detector: Any = detector) -> Iterator[Span]:
            return ((filth.beg, filth.end) for filth in detector.iter_filth(text) if filth.is_valid())

        yield name, gate, find
