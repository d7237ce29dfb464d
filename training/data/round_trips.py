"""Check whether a token store decodes back to the original texts; the counts are cached beside the store.

A tokenizer can change a text: fold case, replace line ends by spaces, lack tokens for emoji. The model is then trained
on a different corpus than the one that was scored.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.dataset import LabelledDataset
from scorers.amounts import format_count
from scorers.errors import UserError
from scorers.stored import Count, read_stored
from training.data.cache import build_once
from training.data.store import TokenStore
from training.data.texts import Texts, read_texts
from training.data.tokenizers import Tokenizer

FOLDER = "round-trips"
COUNTS = "counts.json"

# Share of changed documents above which training is refused. Nearly every SentencePiece-like tokenizer changes a text
# that contains its space mark, U+2581, and any that lacks a token for a rare character changes some: so few affect no
# result, and a refusal would only teach users to allow everything.
_TOLERATED = 0.001

# Decode at least this many tokens at once; the library needs some hundred bytes for each.
_TOKENS = 1 << 18

Progress = Callable[[int, int], None]
Change = Literal["unknown", "space", "case", "compatibility", "other"]


class RoundTrips(BaseModel):
    """How many of a store's documents do not decode to their texts.

    Attributes:
        documents: the total.
        changed: documents that decode to another text. A leading space that cannot be distinguished from the
            tokenizer's prefix space does not count.
        changes: changed documents by the first kind that fits: `unknown` contains the unknown token, `space` differs
            only in white space, `case` only in that and in case, `compatibility` only in these and in Unicode
            normalisation (NFKC), `other`.
        first_changed: the dataset row of the first changed document; None if there is none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    documents: Count
    changed: Count
    changes: dict[Change, Count]
    first_changed: Count | None

    @property
    def is_lossy(self) -> bool:
        """Whether training needs `data.allow_lossy_tokenizer`: too many documents are changed."""
        return self.changed > _TOLERATED * self.documents


def round_trips(
    store: TokenStore, dataset: LabelledDataset, tokenizer: Tokenizer, progress: Progress | None = None
) -> RoundTrips:
    """Read a store's counts, or count and cache them.

    Args:
        store: of the dataset and the tokenizer.
        dataset: has the texts.
        tokenizer: decodes the store.
        progress: called with rows compared and the total while counting.

    Raises:
        UserError: the counts are damaged or cannot be written, or the dataset is damaged.
    """
    place = store.path / FOLDER
    build_once(place, lambda folder: _count(store, dataset, tokenizer, folder, progress))
    try:
        return RoundTrips.model_validate_json(read_stored(place / COUNTS))
    except (OSError, ValidationError):
        raise UserError(f"{place / COUNTS} is damaged. Delete the folder {place}; it will be built again.") from None


def _count(
    store: TokenStore, dataset: LabelledDataset, tokenizer: Tokenizer, folder: Path, progress: Progress | None
) -> None:
    changes: Counter[Change] = Counter()
    first_changed, first = None, 0
    for texts in read_texts(dataset):
        different: dict[int, Change] = {}
        for part in _parts(store, texts, first, tokenizer):
            if part.row not in different and not _same(part, tokenizer):
                different[part.row] = _classify(part, tokenizer)
        if different and first_changed is None:
            first_changed = first + min(different)
        changes.update(different.values())
        first += len(texts)
        if progress is not None:
            progress(first, dataset.manifest.rows)
    counts = RoundTrips(
        documents=first, changed=changes.total(), changes=dict(sorted(changes.items())), first_changed=first_changed
    )
    (folder / COUNTS).write_text(counts.model_dump_json(indent=2) + "\n", encoding="utf-8")


def refuse_changes(trips: RoundTrips, tokenizer: Tokenizer, uri: str, *, allowed: bool) -> tuple[str, ...]:
    """Return warnings if the tokenizer changes texts; refuse more than one changed document in a thousand.

    Raises:
        UserError: too many documents are changed, and `allowed` is false.
    """
    if not trips.changed:
        return ()
    what = describe_changes(trips, tokenizer, uri)
    if allowed or not trips.is_lossy:
        return (f"{what}; the model is trained on the changed text.",)
    raise UserError(
        f"{what}, so the model would be trained on a different corpus than the one that was scored. Choose a "
        "byte-level tokenizer, which is lossless, or omit data.tokenizer to have one trained; or add "
        "--set data.allow_lossy_tokenizer=true to train on the changed text."
    )


def describe_changes(trips: RoundTrips, tokenizer: Tokenizer, uri: str) -> str:
    """Describe how many documents the tokenizer changes, and how."""
    names: dict[Change, str] = {
        "unknown": "have characters that it has no token for",
        "space": "differ in white space",
        "case": "in upper and lower case",
        "compatibility": "in characters that Unicode treats as equivalent",
        "other": "in other characters",
    }
    listed = ", ".join(f"{count:,} {names[name]}" for name, count in trips.changes.items())
    return (
        f"The tokenizer {tokenizer.name} changes the text of {trips.changed:,} of "
        f"{format_count(trips.documents, 'document')} of {uri} ({listed}; the first is row {trips.first_changed:,})"
    )


@dataclass
class _Part:
    """A document, or some sentences of a long one: its text, its ids, and the text that they decode to."""

    row: int
    text: str
    ids: list[int]
    begins: bool
    decoded: str = ""


def _parts(store: TokenStore, texts: Texts, first: int, tokenizer: Tokenizer) -> Iterator[_Part]:
    """Yield the decoded parts of some rows, of which the first is row `first` of the dataset."""
    bounds = store.document_offsets[first : first + len(texts) + 1].tolist()
    pending: list[_Part] = []
    size = 0
    columns = (texts.batch.column("text").to_pylist(), texts.batch.column("ends").to_pylist())
    for row, (text, ends) in enumerate(zip(*columns, strict=True)):
        offsets = store.sentence_offsets[bounds[row] : bounds[row + 1] + 1]
        cuts = np.searchsorted(offsets[1:], np.arange(offsets[0] + _TOKENS, offsets[-1], _TOKENS)) + 1
        for begin, end in pairwise(sorted({0, *cuts.tolist(), len(ends)})):
            ids = np.asarray(store.tokens[offsets[begin] : offsets[end]]).tolist()
            pending.append(_Part(row, text[ends[begin - 1] if begin else 0 : ends[end - 1]], ids, begin == 0))
            size += len(ids)
            if size >= _TOKENS:
                yield from _decoded(pending, tokenizer)
                pending, size = [], 0
    yield from _decoded(pending, tokenizer)


def _decoded(parts: list[_Part], tokenizer: Tokenizer) -> list[_Part]:
    # Decode a continuation after a letter, because decoding may strip a leading space.
    letter = tokenizer.encode(["a"])[0].tolist()
    head = tokenizer.decode(letter)
    found = tokenizer.decode_all([part.ids if part.begins else [*letter, *part.ids] for part in parts])
    for part, decoded in zip(parts, found, strict=True):
        part.decoded = decoded if part.begins else decoded.removeprefix(head)
    return parts


def _same(part: _Part, tokenizer: Tokenizer) -> bool:
    if part.text == part.decoded:
        return True
    return part.begins and tokenizer.adds_prefix_space and part.text == f" {part.decoded}"


def _classify(part: _Part, tokenizer: Tokenizer) -> Change:
    unknown = tokenizer.fast.unk_token_id
    if unknown is not None and unknown in part.ids:
        return "unknown"
    for name, form in _FORMS.items():
        if form(part.text) == form(part.decoded):
            return name
    return "other"


def _compatible(text: str) -> str:
    return unicodedata.normalize("NFKC", _without_space(text).casefold())


def _without_space(text: str) -> str:
    return "".join(text.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").split())


_FORMS: dict[Change, Callable[[str], str]] = {
    "space": _without_space,
    "case": lambda text: _without_space(text).casefold(),
    "compatibility": _compatible,
}
