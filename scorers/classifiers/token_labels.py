"""Decode the labels of tokens, plain or with the prefixes of BIO and BIOES (also called BILOU), into spans."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scorers.errors import UserError
from scorers.spans import LONGEST_TYPE, Finding, is_type

OUTSIDE = "O"
"""The label of tokens that belong to nothing."""

_PREFIXED = re.compile(r"([BIESLU])([-_])(.+)", re.DOTALL)
# The places of a token in a span: it begins, is inside, ends or is one by itself.
_PLACES: dict[str, Literal["B", "I", "E", "S"]] = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S"}


class Tag(NamedTuple):
    """A token's place in a span, `I` for a plain label, and the span's type."""

    place: Literal["B", "I", "E", "S"]
    type: str


def tags_of(names: Mapping[Any, str], wanted: Collection[str] | None, folder: Path) -> list[Tag | None]:
    """Return the tag of each output of a model, None for `O`.

    Args:
        names: the labels by number, from the model's configuration.
        wanted: types that the user named; None for all.
        folder: of the model, for messages.

    Raises:
        UserError: without names there is no `O` among the labels; a name is not there; a label cannot be shown; or
            numbers are missing.
    """
    numbers = sorted(map(int, names))
    if numbers != [*range(len(numbers))]:
        raise UserError(f"The labels of the model in {folder} are not numbered from 0: id2label in its config.json.")
    labels = [str(names[key]) for key in sorted(names, key=int)]
    # A label such as E-MAIL, U_ID or B_CELL has no prefix, unless others show that the model's labels have some.
    marks = {
        each[1]
        for each in labels
        if each.startswith(("B-", "B_")) and any(place + each[1:] in labels for place in "IEL")
    }
    tags = [None if label == OUTSIDE else _tag(label, marks) for label in labels]
    types = sorted({tag.type for tag in tags if tag is not None})
    listed = ", ".join(types[:20]) + (", …" if len(types) > 20 else "")
    if not all(map(is_type, types)):
        raise UserError(
            f"A label of the model in {folder} is not 1 to {LONGEST_TYPE} printable characters without braces."
        )
    for each in wanted or ():
        if each not in types:
            raise UserError(f"The model in {folder} has no label {each!r}; its labels are {listed or 'none'}.")
    if wanted is None and None not in tags:
        raise UserError(
            f"The model in {folder} has no label {OUTSIDE!r} for tokens that are nothing, so every token would count. "
            f"If it is a token classifier, name the labels that count: labels=NAME+NAME. It has {listed or 'none'}."
        )
    return tags


def _tag(label: str, marks: Collection[str]) -> Tag:
    match = _PREFIXED.fullmatch(label)
    if match is None or not (match[2] in marks or label.startswith(("B-", "I-"))):
        return Tag("I", label)
    return Tag(_PLACES[match[1]], match[3])


def decode(
    text: str, offsets: NDArray[np.int32], tags: Sequence[Tag | None], probabilities: NDArray[np.float32]
) -> list[Finding]:
    """Return the spans of a text, sorted, without white space at their ends; the score is the mean probability.

    Args:
        text: the text.
        offsets: int32 [tokens, 2], start and exclusive end of each token in code points.
        tags: of each token.
        probabilities: float32 [tokens], of these tags.
    """
    found: list[Finding] = []
    group: list[int] = []
    before: Tag | None = None

    def close() -> None:
        if not group:
            return
        tag = tags[group[0]]
        places = offsets[group]
        places = places[places[:, 0] < places[:, 1]]
        if tag is not None and len(places):
            start, end = int(places[:, 0].min()), int(places[:, 1].max())
            content = text[start:end]
            start += len(content) - len(content.lstrip())
            end -= len(content) - len(content.rstrip())
            if start < end:
                score = float(np.mean(probabilities[group], dtype=np.float64))
                found.append(Finding(start, end, tag.type, score))
        group.clear()

    for index, tag in enumerate(tags):
        continues = (
            tag is not None
            and before is not None
            and tag.type == before.type
            and tag.place in "IE"
            and before.place in "BI"
        )
        if not continues:
            close()
        if tag is not None:
            group.append(index)
        before = tag
    close()
    return sorted(found)
