"""Language tags (BCP 47), such as `en`, `pt-BR` or `zh-Hant`: which languages a scorer speaks."""

import re
from collections.abc import Collection
from typing import Annotated, Any

from pydantic import BeforeValidator

_TAG = re.compile(r"[a-z]{2,8}(-[a-z0-9]{1,8})*\Z")


def normalised(tag: str) -> str:
    """Return a tag in lower case, with hyphens; `en_US.UTF-8`, as in a locale, is `en-us`.

    Raises:
        ValueError: it is no language tag.
    """
    found = tag.strip().partition(".")[0].replace("_", "-").lower()
    if not _TAG.match(found):
        raise ValueError("it is no language tag, such as en, pt-BR or zh-Hant")
    return found


def speaks(languages: Collection[str], tag: str) -> bool:
    """Return whether one of these languages covers a tag: `en` covers `en-GB`, but `en-GB` does not cover `en`.

    This is the basic filtering of RFC 4647, section 3.3.1.

    Args:
        languages: normalised tags.
        tag: of a text.

    Raises:
        ValueError: the tag is no language tag.
    """
    subtags = normalised(tag).split("-")
    return any("-".join(subtags[:length]) in languages for length in range(1, len(subtags) + 1))


def _tags(value: Any) -> Any:
    tags = value.split("+") if isinstance(value, str) else value
    if not isinstance(tags, list | tuple) or not all(isinstance(each, str) for each in tags):
        return tags
    found = []
    for each in tags:
        try:
            found.append(normalised(each))
        except ValueError as error:
            raise ValueError(f"{each!r}: {error}") from None
    return sorted(set(found))


Languages = Annotated[tuple[str, ...], BeforeValidator(_tags)]
"""Normalised tags, sorted; a string holds them with `+` between them."""
