"""The index of a stream: which documents it has and where each stands, so that reading a block takes a few look-ups.

With dropped tags the index of a large store takes seconds to compute, because every sentence is hashed. So it is cached
beside the store as memory-mapped arrays; where the cache cannot be written, it is computed each time.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset.hashing import combine, uniform
from pipeline.dataset.tags import keeps_tag
from training.data.arrays import read_array, write_array
from training.data.store import TokenStore


def tag_names(classes: int) -> tuple[str, ...]:
    """Return the names of the sentence classes, best first: aligned and misaligned for two, quantiles for more."""
    if classes == 2:
        return "aligned", "misaligned"
    return tuple(f"quantile_{number}" for number in range(1, classes + 1))


@dataclass(frozen=True)
class StreamOptions:
    """What a stream contains.

    Attributes:
        context_length: T, tokens per block.
        eos_id: ends every document; it also stands before the first.
        bos_id: begins every document, after `eos_id`; None, or equal to `eos_id`, if EOS does both.
        held_out: share of documents left out, chosen by a hash of `held_out_seed` and the document's text.
        held_out_seed: seed of that hash.
        filter_threshold: leave out documents with a greater mean score; None keeps all.
        tag_bounds: ascending, compared as float32: a sentence gets the control token `tag_ids[i]` if its score is
            above i of the bounds. One bound for aligned and misaligned, K - 1 for K classes; None for no tags.
        tag_ids: the control tokens before sentences, best first, one more than bounds; empty for none.
        after_ids: those after sentences, likewise.
        drop_tags: share of sentences without a control token, chosen by a hash of `seed`, the document's text and
            the sentence's number in it.
        seed: of the hashes for `drop_tags` and `part`.
        part: only documents whose hash, as a number in [0, 1), is in [low, high); None for all. Streams of disjoint
            parts share no text.
        findings: name of a scorer's findings in the store: a token carries its sentence's score only where it overlaps
            a finding, else 0; None gives every token its sentence's score.
        credit: name of the token scores that `phf credit` stored, which tokens of the text carry instead.
        hide_above: tokens of the text with a greater score, compared as float32, are replaced by `hidden_id`; None for
            none.
        hidden_id: that token.
    """

    context_length: int
    eos_id: int
    bos_id: int | None = None
    held_out: float = 0.0
    held_out_seed: int = 0
    filter_threshold: float | None = None
    tag_bounds: tuple[float, ...] | None = None
    tag_ids: tuple[int, ...] = ()
    after_ids: tuple[int, ...] = ()
    drop_tags: float = 0.0
    seed: int = 0
    part: tuple[float, float] | None = None
    findings: str | None = None
    credit: str | None = None
    hide_above: float | None = None
    hidden_id: int | None = None

    @property
    def classes(self) -> int:
        """The number of classes of sentences; 0 without tags."""
        return 0 if self.tag_bounds is None else len(self.tag_bounds) + 1

    @property
    def tags_a_sentence(self) -> int:
        """The number of control tokens of a sentence with tags."""
        return 0 if self.tag_bounds is None else bool(self.tag_ids) + bool(self.after_ids)

    @property
    def begins_with(self) -> int:
        """The token that a document begins with."""
        return self.eos_id if self.bos_id is None else self.bos_id

    @property
    def between(self) -> tuple[int, ...]:
        """The tokens before a document: EOS of the previous one, and its own BOS if that differs."""
        return (self.eos_id,) if self.begins_with == self.eos_id else (self.eos_id, self.begins_with)

    def __post_init__(self) -> None:
        if self.tag_bounds is not None and {len(self.tag_ids), len(self.after_ids)} - {0} != {self.classes}:
            raise ValueError("tag_ids or after_ids need one id more than tag_bounds")
        if (self.hide_above is None) != (self.hidden_id is None):
            raise ValueError("hide_above needs hidden_id")


FOLDER = "streams"
_VERSION = 1

# Documents are indexed in pieces of at most this many sentences, so that blocks of very long documents cost no more.
_PIECE = 256
# Sentences per chunk of a pass over all of them: bounds the memory of statistics.
_CHUNK = 1 << 22
# Cache the layout from this many sentences on: below, computing it takes a tenth of a second.
_WORTH_KEEPING = 1_000_000

# Salts: independent choices from one seed; dropped tags have 2.
_HELD_OUT = 1
_PART = 3


@dataclass(frozen=True)
class Layout:
    """The documents of a stream, in order, in pieces of at most 256 sentences; all but `piece_eos` are int64.

    Attributes:
        documents: [documents], indices into the store.
        held_out, filtered: documents with a score that were left out for that reason.
        piece_document, piece_begin, piece_end: [pieces], the document, the piece's first sentence, and its last + 1.
        piece_starts: [pieces + 1], position in the stream of each piece's first token, then the stream's length.
        piece_eos: uint8 [pieces], 1 where the piece begins with EOS (and BOS), being the first of its document.
    """

    documents: NDArray[np.int64]
    held_out: NDArray[np.int64]
    filtered: NDArray[np.int64]
    piece_document: NDArray[np.int64]
    piece_begin: NDArray[np.int64]
    piece_end: NDArray[np.int64]
    piece_starts: NDArray[np.int64]
    piece_eos: NDArray[np.uint8]

    def sentence_chunks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield all sentences of the stream in order, some millions at a time, with the document of each."""
        for pieces in _chunks(len(self.piece_begin)):
            yield _sentences(self.piece_document[pieces], self.piece_begin[pieces], self.piece_end[pieces])


def load_layout(store: TokenStore, column: str, options: StreamOptions) -> Layout:
    """Load the layout of a stream from the cache beside the store, or compute it; cache that of a large store."""
    if store.num_sentences < _WORTH_KEEPING:
        return compute_layout(store, column, options)
    folder = store.path / FOLDER / _key(column, options)
    # A missing or damaged cache is computed again.
    with contextlib.suppress(OSError, pa.ArrowException):
        return Layout(**{field.name: read_array(folder / f"{field.name}.arrow") for field in fields(Layout)})
    layout = compute_layout(store, column, options)
    # The disk may be full or read-only; then the next start computes the layout again.
    with contextlib.suppress(OSError):
        _save(layout, folder)
    return layout


def compute_layout(store: TokenStore, column: str, options: StreamOptions) -> Layout:
    """Compute the layout of a stream from the store's offsets, mean scores and hashes of texts."""
    means = store.document_means(column)
    null = np.isnan(means)
    held_out = uniform(combine(options.held_out_seed, _HELD_OUT, store.text_hashes)) < options.held_out
    held_out &= ~null
    outside = np.zeros_like(null)
    if options.part is not None:
        place = uniform(combine(options.seed, _PART, store.text_hashes))
        outside = (place < options.part[0]) | (place >= options.part[1])
    filtered = np.zeros_like(null)
    if options.filter_threshold is not None:
        filtered = (means > options.filter_threshold) & ~(held_out | outside)
    documents: NDArray[np.int64] = np.flatnonzero(~(null | held_out | outside | filtered))
    counts = np.diff(store.document_offsets)[documents]
    pieces = np.maximum(-(-counts // _PIECE), 1)
    document = np.repeat(documents, pieces)
    number = ragged_ranges(np.zeros_like(pieces), pieces)
    begin = store.document_offsets[document] + number * _PIECE
    end = np.minimum(begin + _PIECE, store.document_offsets[document + 1])
    eos = number == 0
    lengths = store.sentence_offsets[end] - store.sentence_offsets[begin] + eos * len(options.between)
    lengths += _count_tags(store, options, document, begin, end)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
    return Layout(
        documents,
        np.flatnonzero(held_out),
        np.flatnonzero(filtered),
        document,
        begin,
        end,
        starts,
        eos.astype(np.uint8),
    )


def has_tag(
    store: TokenStore, options: StreamOptions, sentence: NDArray[np.int64], document: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether each sentence has its control tokens; sentences of one document must be adjacent."""
    if options.tag_bounds is None:
        return np.zeros(len(sentence), dtype=np.bool_)
    if not options.drop_tags:
        return np.ones(len(sentence), dtype=np.bool_)
    # One hash per document, as its sentences are adjacent, then one per sentence.
    starts = np.flatnonzero(np.diff(document, prepend=-1))
    counts = np.diff(starts, append=len(document))
    number = sentence - store.document_offsets[document]
    return keeps_tag(store.text_hashes[document[starts]], counts, number, options.drop_tags, options.seed)


def ragged_ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Concatenate the ranges `starts[i], starts[i]+1, …` of `counts[i]` numbers each, without a loop."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.asarray(np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - counts), counts))


def _count_tags(
    store: TokenStore,
    options: StreamOptions,
    document: NDArray[np.int64],
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
) -> NDArray[np.int64]:
    sizes = end - begin
    if options.tag_bounds is None:
        return np.zeros_like(sizes)
    if not options.drop_tags:
        return sizes * options.tags_a_sentence
    counts = []
    for pieces in _chunks(len(sizes)):
        tagged = has_tag(store, options, *_sentences(document[pieces], begin[pieces], end[pieces]))
        sums = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(tagged)])
        ends = np.cumsum(sizes[pieces])
        counts.append(sums[ends] - sums[ends - sizes[pieces]])
    return np.concatenate(counts, dtype=np.int64) * options.tags_a_sentence if counts else sizes


def _chunks(pieces: int) -> Iterator[slice]:
    return (slice(first, first + _CHUNK // _PIECE) for first in range(0, pieces, _CHUNK // _PIECE))


def _sentences(
    document: NDArray[np.int64], begin: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    counts = end - begin
    return ragged_ranges(begin, counts), np.repeat(document, counts)


def _key(column: str, options: StreamOptions) -> str:
    facts: dict[str, Any] = {
        "version": _VERSION,
        "column": column,
        "held_out": [options.held_out, options.held_out_seed],
        "filter": options.filter_threshold,
        "tags": None if options.tag_bounds is None else [options.drop_tags, options.seed],
    }
    if options.part is not None:
        facts["part"] = [*options.part, options.seed]
    if options.tags_a_sentence > 1:
        facts["tags_a_sentence"] = options.tags_a_sentence
    if len(options.between) > 1:
        facts["between"] = len(options.between)
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _save(layout: Layout, folder: Path) -> None:
    folder.parent.mkdir(exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=folder.parent))
    try:
        for field in fields(Layout):
            write_array(staging / f"{field.name}.arrow", np.ascontiguousarray(getattr(layout, field.name)))
        # An existing folder is damaged, or another process has just written the same.
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
