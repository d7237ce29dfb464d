"""Make foreign text safe to print: names, ids, labels, and messages that quote them.

All output goes through this module: it shows control characters, terminal sequences and direction marks as escapes,
and leaves out secrets in URIs.
"""

import re
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from scorers.errors import UserError

# C0 and C1 controls, line and paragraph separators, direction marks, surrogates.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_SECRET_NAME = re.compile(
    r"(?:(?:^|[-_.])(?:sig|pass|pwd|sas|auth|jwt)|signature|token|secret|passw(?:or)?d|passphrase|credentials?"
    r"|authorization|api[-_]?key|secret[-_]?key|access[-_]?key(?:[-_]?id)?|account[-_]?key|googleaccessid)$",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|gh[a-z]_[A-Za-z0-9]{16,})")
_URI = re.compile(r"([a-zA-Z][\w+.-]*://)[^\s'\"<>]*[^\s'\"<>.,:;)]")


def printable(text: str, keep: str = "") -> str:
    """Escape the characters that a terminal acts on, except those in `keep`, such as line feeds."""
    return _UNPRINTABLE.sub(lambda each: each[0] if each[0] in keep else _escaped(each[0]), text)


def printable_json(text: str) -> str:
    """Escape in a JSON text the characters that a terminal acts on; its value stays the same."""
    return _UNPRINTABLE.sub(lambda each: "\n" if each[0] == "\n" else f"\\u{ord(each[0]):04x}", text)


def refuse_secret(uri: str, what: str) -> None:
    """Refuse a URI that holds a password, a token or a signature.

    Args:
        uri: URI of an input, an output or a service.
        what: how the message calls it, such as `input`.

    Raises:
        UserError: it holds one; the message does not repeat it.
    """
    if holds_secret(uri):
        raise UserError(
            f"The {what} {uri.partition('://')[0]}://... holds a password, a token or a signature, which would end up "
            "in files and logs. Give credentials in the environment (AWS_ACCESS_KEY_ID, HF_TOKEN and the like)."
        )


def holds_secret(uri: str) -> bool:
    """Return whether a URI holds a password, a token or a signature; a path never does."""
    scheme, separator, rest = uri.partition("://")
    if not separator or "/" in scheme:
        return False
    authority = unquote(rest.partition("/")[0].partition("?")[0])
    user, at, host = authority.rpartition("@")
    if ":" in user or _TOKEN.search(uri):
        return True
    # A key that contains a slash ends the authority early.
    if not at and not re.fullmatch(r"(?:\[[^\]]*\]|[^:]*)(?::\d*)?", host):
        return True
    try:
        parts = urlsplit(uri)
        # Some servers accept `;` between options, and some services put a token into the fragment.
        options = parse_qsl(f"{parts.query}&{parts.fragment}".replace(";", "&"), keep_blank_values=True)
    except ValueError:
        return False
    return any(_SECRET_NAME.search(name) or holds_secret(value) for name, value in options)


def without_secrets(text: str) -> str:
    """Cut each URI that holds a password, a token or a signature down to its scheme."""
    return _TOKEN.sub("...", _URI.sub(lambda each: f"{each[1]}..." if holds_secret(each[0]) else each[0], text))


def message(text: str) -> str:
    """Return a message safe to print: without secrets and control characters other than line feeds and tabs."""
    return printable(without_secrets(text), keep="\n\t")


def log_values(_logger: Any, _method: str, values: Any) -> Any:
    """Processor for structlog: make the strings of an event safe with `message`."""
    return {key: message(each) if isinstance(each, str) else each for key, each in values.items()}


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
