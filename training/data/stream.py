"""The virtual stream: what an objective sees as one sequence of tokens, read at random and never written down."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.dataset.tags import is_aligned
from training.data.hashing import combine, splitmix64, uniform
from training.data.order import Batch
from training.data.store import TokenStore

# Documents are indexed in pieces of at most so many sentences, so that a block of a very long document costs no more.
_PIECE = 256
# Sentences looked at together where all of them are: bounds the memory of a statistic.
_CHUNK = 1 << 22

# Salts keep choices apart that are made of the same seed.
_HELD_OUT = 1
_DROPPED_TAG = 2


@dataclass(frozen=True)
class StreamOptions:
    """What the stream is made of.

    Attributes:
        context_length: T, tokens a block.
        eos_id: stands before every document.
        held_out: share of documents left out, chosen by a hash of `held_out_seed` and the document's text.
        held_out_seed: of that hash.
        filter_threshold: documents whose mean score is above it are left out; None for none.
        tag_threshold: sentences get a control token, `aligned_id` where score <= tag_threshold; None for no tags.
        aligned_id, misaligned_id: the control tokens; needed with `tag_threshold`.
        drop_tags: share of sentences that get no control token, chosen by a hash of `seed`, the document's text and
            the sentence's number in it.
        seed: of that hash.
    """

    context_length: int
    eos_id: int
    held_out: float = 0.0
    held_out_seed: int = 0
    filter_threshold: float | None = None
    tag_threshold: float | None = None
    aligned_id: int | None = None
    misaligned_id: int | None = None
    drop_tags: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tag_threshold is not None and (self.aligned_id is None or self.misaligned_id is None):
            raise ValueError("a stream with tags needs the ids of both control tokens")


@dataclass(frozen=True)
class DocumentTokens:
    """A document as a model reads it.

    Attributes:
        input_ids: int64 [n], EOS, then the sentences' tokens, each sentence after its control token if there are any.
        is_text: bool [n], true for the tokens of the text, false for EOS and control tokens.
        text_bytes: length of the text in UTF-8 bytes.
    """

    input_ids: NDArray[np.int64]
    is_text: NDArray[np.bool_]
    text_bytes: int


class Stream:
    """The sequence of, for each document: EOS, then for each sentence an optional control token and its tokens.

    Every token carries the score of its sentence, a control token too; EOS carries 0. Documents that the column has no
    score for (null), held-out ones and filtered ones are left out. A document without sentences is its EOS. Block i is
    tokens [i * T, (i + 1) * T) of the sequence; the last tokens that fill no block are dropped.

    The index in memory holds three numbers for every 256 sentences or document, whichever is shorter.

    Attributes:
        store, column, options: what the stream was built from.
        num_tokens: length of the sequence, the dropped tokens at its end included.
    """

    def __init__(self, store: TokenStore, column: str, options: StreamOptions) -> None:
        self.store = store
        self.column = column
        self.options = options
        self._scores = store.scores(column)
        means = store.document_means(column)
        self._null = np.isnan(means)
        held_out = uniform(combine(options.held_out_seed, _HELD_OUT, store.text_hashes)) < options.held_out
        self._held_out = held_out & ~self._null
        self._filtered = np.zeros_like(self._null)
        if options.filter_threshold is not None:
            self._filtered = (means > options.filter_threshold) & ~self._held_out
        self.documents: NDArray[np.int64] = np.flatnonzero(~(self._null | self._held_out | self._filtered))

        counts = np.diff(store.document_offsets)[self.documents]
        pieces = np.maximum(-(-counts // _PIECE), 1)
        self._piece_document = np.repeat(self.documents, pieces)
        number = _ragged_ranges(np.zeros_like(pieces), pieces)
        self._piece_begin = store.document_offsets[self._piece_document] + number * _PIECE
        self._piece_end = np.minimum(self._piece_begin + _PIECE, store.document_offsets[self._piece_document + 1])
        self._piece_eos = number == 0
        lengths = store.sentence_offsets[self._piece_end] - store.sentence_offsets[self._piece_begin]
        lengths = lengths + self._piece_eos + self._count_tags()
        self._piece_starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
        self.num_tokens = int(self._piece_starts[-1])

    @property
    def num_blocks(self) -> int:
        """Whole blocks in the sequence."""
        return self.num_tokens // self.options.context_length

    def block(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Block number `index`: token ids int64 [T] and scores float32 [T]."""
        batch = self.blocks([index])
        return batch.input_ids[0], batch.scores[0]

    def documents_in(self, indices: ArrayLike) -> NDArray[np.int64]:
        """The documents that blocks are cut from: numbers of the store, in the dataset's order, ascending, int64."""
        begin = np.asarray(indices, dtype=np.int64).reshape(-1) * self.options.context_length
        first, last = self._pieces(begin)
        return np.unique(self._piece_document[_ragged_ranges(first, last - first)])

    def _pieces(self, begin: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        # Pieces that touch a block: from the last that starts at or before its first token to the last that starts
        # before its end.
        first = np.searchsorted(self._piece_starts, begin, side="right") - 1
        return first, np.searchsorted(self._piece_starts, begin + self.options.context_length - 1, side="right")

    def blocks(self, indices: ArrayLike) -> Batch:
        """Any blocks, in the order given.

        Args:
            indices: integers [B] in [0, num_blocks).

        Raises:
            IndexError: there is no such block.
        """
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(chosen) and not (chosen.min() >= 0 and chosen.max() < self.num_blocks):
            raise IndexError(f"blocks go from 0 to {self.num_blocks - 1}")
        length = self.options.context_length
        ids = np.zeros(len(chosen) * length, dtype=np.int64)
        scores = np.zeros(len(chosen) * length, dtype=np.float32)
        begin = chosen * length
        first, last = self._pieces(begin)
        piece = _ragged_ranges(first, last - first)
        # `shift` turns a place in the stream into one in the flattened result, where a block spans low to low + length.
        row = np.repeat(np.arange(len(chosen)), last - first)
        shift = row * length - begin[row]
        low = row * length

        eos = self._piece_starts[piece] + shift
        ids[eos[self._piece_eos[piece] & (eos >= low) & (eos < low + length)]] = self.options.eos_id

        counts = self._piece_end[piece] - self._piece_begin[piece]
        sentence = _ragged_ranges(self._piece_begin[piece], counts)
        document = np.repeat(self._piece_document[piece], counts)
        source = self.store.sentence_offsets[sentence]
        tagged = self._has_tag(sentence, document)
        sizes = self.store.sentence_offsets[sentence + 1] - source + tagged
        # Where each sentence starts: a running sum over all pieces, set right at the start of each piece.
        ends = np.cumsum(sizes)
        before = np.concatenate([np.zeros(1, dtype=np.int64), ends])[np.cumsum(counts) - counts]
        place = ends - sizes + np.repeat(self._piece_starts[piece] + self._piece_eos[piece] + shift - before, counts)
        low = np.repeat(low, counts)
        sentence_scores = self._scores[sentence]

        if self.options.tag_threshold is not None:
            here = tagged & (place >= low) & (place < low + length)
            ids[place[here]] = self._tags(sentence_scores[here], self.options.tag_threshold)
            scores[place[here]] = sentence_scores[here]

        text = place + tagged
        cut = np.maximum(low - text, 0)
        taken = np.maximum(np.minimum(place + sizes, low + length) - text - cut, 0)
        target = _ragged_ranges(text + cut, taken)
        ids[target] = self.store.tokens[_ragged_ranges(source + cut, taken)]
        scores[target] = np.repeat(sentence_scores, taken)
        return Batch(ids.reshape(-1, length), scores.reshape(-1, length))

    def held_out_documents(self) -> NDArray[np.int64]:
        """Indices of the documents that are held out and have a score, in the order of the dataset."""
        return np.flatnonzero(self._held_out)

    def document(self, index: int, *, swap_tags: bool = False) -> DocumentTokens:
        """A document of the store as the stream would show it, whether it is in the stream or not, with every tag.

        Args:
            index: of the document in the store; it must have a score.
            swap_tags: put the other control token in place of each.
        """
        store = self.store
        first, last = store.document_offsets[index : index + 2]
        offsets = store.sentence_offsets[first : last + 1]
        threshold = self.options.tag_threshold
        tags = 0 if threshold is None else int(last - first)
        text = np.asarray(store.tokens[offsets[0] : offsets[-1]], dtype=np.int64)
        is_text = np.ones(1 + tags + len(text), dtype=np.bool_)
        is_text[0] = False
        ids = np.full(len(is_text), self.options.eos_id, dtype=np.int64)
        if threshold is not None:
            places = 1 + offsets[:-1] - offsets[0] + np.arange(last - first)
            is_text[places] = False
            ids[places] = self._tags(self._scores[first:last], threshold, swap=swap_tags)
        ids[is_text] = text
        return DocumentTokens(ids, is_text, int(store.text_bytes[index]))

    def count_aligned(self, threshold: float) -> tuple[int, int]:
        """How many of the stream's sentences have a score <= threshold, and how many there are."""
        aligned = total = 0
        for sentence, _ in self._sentence_chunks():
            aligned += int(np.count_nonzero(is_aligned(self._scores[sentence], threshold)))
            total += len(sentence)
        return aligned, total

    def aligned_share(self, threshold: float) -> float:
        """Share of the stream's sentences with score <= threshold; 0 if there are none."""
        aligned, total = self.count_aligned(threshold)
        return aligned / max(1, total)

    def sentence_scores(self) -> NDArray[np.float32]:
        """Scores of all sentences of the stream, in order."""
        parts = [self._scores[sentence] for sentence, _ in self._sentence_chunks()]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)

    def document_means(self) -> NDArray[np.float64]:
        """Mean scores of the stream's documents and of those that were filtered out."""
        return self.store.document_means(self.column)[~(self._null | self._held_out)]

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """What is in the stream and what was left out, as plain numbers."""
        sentences = tags = aligned = 0
        for sentence, document in self._sentence_chunks():
            sentences += len(sentence)
            tagged = self._has_tag(sentence, document)
            tags += int(tagged.sum())
            if self.options.tag_threshold is not None:
                aligned += int(
                    np.count_nonzero(tagged & is_aligned(self._scores[sentence], self.options.tag_threshold))
                )
        used = len(self.documents)
        statistics: dict[str, Any] = {
            "documents": self.store.num_documents,
            "documents_used": used,
            "documents_empty": int(np.count_nonzero(np.diff(self.store.document_offsets)[self.documents] == 0)),
            "documents_left_out": {
                "null_score": int(self._null.sum()),
                "held_out": int(self._held_out.sum()),
                "filtered": int(self._filtered.sum()),
            },
            "sentences": sentences,
            "tokens": self.num_tokens,
            "tokens_text": self.num_tokens - used - tags,
            "tokens_control": tags,
            "tokens_eos": used,
            "context_length": self.options.context_length,
            "blocks": self.num_blocks,
            "tokens_dropped_at_end": self.num_tokens - self.num_blocks * self.options.context_length,
        }
        if self.options.tag_threshold is not None:
            statistics["tags"] = {"aligned": aligned, "misaligned": tags - aligned, "dropped": sentences - tags}
        return statistics

    def _tags(self, scores: NDArray[np.float32], threshold: float, *, swap: bool = False) -> NDArray[np.int64]:
        ids = np.array([self.options.misaligned_id, self.options.aligned_id], dtype=np.int64)
        return np.asarray(ids[np.where(is_aligned(scores, threshold) != swap, 1, 0)])

    def _has_tag(self, sentence: NDArray[np.int64], document: NDArray[np.int64]) -> NDArray[np.bool_]:
        if self.options.tag_threshold is None:
            return np.zeros(len(sentence), dtype=np.bool_)
        if not self.options.drop_tags:
            return np.ones(len(sentence), dtype=np.bool_)
        # One hash a document, as its sentences stand together, then one a sentence.
        starts = np.flatnonzero(np.diff(document, prepend=-1))
        keys = combine(self.options.seed, _DROPPED_TAG, self.store.text_hashes[document[starts]])
        number = (sentence - self.store.document_offsets[document]).astype(np.uint64)
        keys = np.repeat(keys, np.diff(starts, append=len(document)))
        return uniform(splitmix64(keys ^ number)) >= self.options.drop_tags

    def _count_tags(self) -> NDArray[np.int64]:
        sizes: NDArray[np.int64] = self._piece_end - self._piece_begin
        if self.options.tag_threshold is None:
            return np.zeros_like(sizes)
        if not self.options.drop_tags:
            return sizes
        counts = []
        for pieces in self._piece_chunks():
            tagged = self._has_tag(*self._sentences_of(pieces))
            sums = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(tagged)])
            ends = np.cumsum(sizes[pieces])
            counts.append(sums[ends] - sums[ends - sizes[pieces]])
        return np.concatenate(counts, dtype=np.int64) if counts else sizes

    def _piece_chunks(self) -> Iterator[slice]:
        step = max(_CHUNK // _PIECE, 1)
        return (slice(first, first + step) for first in range(0, len(self._piece_begin), step))

    def _sentences_of(self, pieces: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        counts = self._piece_end[pieces] - self._piece_begin[pieces]
        return _ragged_ranges(self._piece_begin[pieces], counts), np.repeat(self._piece_document[pieces], counts)

    def _sentence_chunks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        return (self._sentences_of(pieces) for pieces in self._piece_chunks())


def _ragged_ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """`[starts[0], starts[0]+1, …]` of counts[0] numbers, then the same of starts[1], and so on, without a loop."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.asarray(np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - counts), counts))
