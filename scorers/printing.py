"""What foreign text looks like where people read it: names, ids, labels and messages that quote them.

Every output goes through here: control characters, escape sequences and marks that turn the direction of writing are
shown as escapes, and secrets in URIs are left out.
"""

import re
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from scorers.errors import UserError

# C0 and C1 controls, separators of lines and paragraphs, marks of direction, halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_SECRET_NAME = re.compile(
    r"(?:(?:^|[-_.])(?:sig|pass|pwd|sas|auth|jwt)|signature|token|secret|passw(?:or)?d|passphrase|credentials?"
    r"|authorization|api[-_]?key|secret[-_]?key|access[-_]?key(?:[-_]?id)?|account[-_]?key|googleaccessid)$",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|gh[a-z]_[A-Za-z0-9]{16,})")
_URI = re.compile(r"([a-zA-Z][\w+.-]*://)[^\s'\"<>]*[^\s'\"<>.,:;)]")


def printable(text: str, keep: str = "") -> str:
    """A text with visible escapes in place of what a terminal acts on.

    Args:
        text: any.
        keep: characters that stay as they are, such as line feeds.
    """
    return _UNPRINTABLE.sub(lambda each: each[0] if each[0] in keep else _escaped(each[0]), text)


def printable_json(text: str) -> str:
    """JSON with escapes in place of what a terminal would act on; it means the same."""
    return _UNPRINTABLE.sub(lambda each: "\n" if each[0] == "\n" else f"\\u{ord(each[0]):04x}", text)


def refuse_secret(uri: str, what: str) -> None:
    """Refuse a URI that holds a password, a token or a signature.

    Args:
        uri: of an input, an output or a service.
        what: it is, for the error, such as `input`.

    Raises:
        UserError: it does; the message does not repeat it.
    """
    if holds_secret(uri):
        raise UserError(
            f"The {what} {uri.partition('://')[0]}://... holds a password, a token or a signature, which would be kept "
            "in files and logs. Give credentials by the environment (AWS_ACCESS_KEY_ID, HF_TOKEN and the like)."
        )


def holds_secret(uri: str) -> bool:
    """Whether a URI holds a password, a token or a signature; a path never does."""
    scheme, separator, rest = uri.partition("://")
    if not separator or "/" in scheme:
        return False
    authority = unquote(rest.partition("/")[0].partition("?")[0])
    user, at, host = authority.rpartition("@")
    if ":" in user or _TOKEN.search(uri):
        return True
    # A key with a slash in it ends the authority early.
    if not at and not re.fullmatch(r"(?:\[[^\]]*\]|[^:]*)(?::\d*)?", host):
        return True
    try:
        parts = urlsplit(uri)
        # Some servers take `;` between options, and some services hand out a token in the fragment.
        options = parse_qsl(f"{parts.query}&{parts.fragment}".replace(";", "&"), keep_blank_values=True)
    except ValueError:
        return False
    return any(_SECRET_NAME.search(name) or holds_secret(value) for name, value in options)


def without_secrets(text: str) -> str:
    """A message without the URIs in it that hold a password, a token or a signature."""
    return _TOKEN.sub("...", _URI.sub(lambda each: f"{each[1]}..." if holds_secret(each[0]) else each[0], text))


def message(text: str) -> str:
    """A message for people: without secrets, and with nothing in it that a terminal acts on; it may have lines."""
    return printable(without_secrets(text), keep="\n\t")


def log_values(_logger: Any, _method: str, values: Any) -> Any:
    """A processor of structlog: the texts of an event as `message` has them."""
    return {key: message(each) if isinstance(each, str) else each for key, each in values.items()}


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
