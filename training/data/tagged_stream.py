"""The virtual stream: one sequence of tokens for an objective, with random access, never written to disk."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.dataset.tags import is_aligned
from training.data.batches import Batch
from training.data.index import StreamOptions, has_tag, load_layout, ragged_ranges, tag_names
from training.data.store import TokenStore
from training.data.stored_credit import credit_scores, read_credit

# Sentences whose tokens are counted at a time: bounds the memory of statistics.
_COUNTED = 1 << 16


@dataclass(frozen=True)
class DocumentTokens:
    """A document as the model reads it.

    Attributes:
        input_ids: int64 [n], EOS (or BOS, if documents begin with that), then the sentences' tokens, each sentence
            between its control tokens if there are any.
        is_text: bool [n], true for tokens of the text, false for the first and control tokens.
        text_bytes: length of the text in UTF-8 bytes.
    """

    input_ids: NDArray[np.int64]
    is_text: NDArray[np.bool_]
    text_bytes: int


class Stream:
    """A token sequence: for each document EOS, then each sentence with optional control tokens before and after it.

    If the tokenizer begins texts with another token (BOS), that follows EOS, as in the pretraining of Llama, where a
    document is BOS, text and EOS. Every token carries the score of its sentence, control tokens too; EOS and BOS carry
    0. With `findings`, tokens of the text that overlap none carry 0; with `credit`, each carries its own score. With
    `hide_above`, `hidden_id` stands in place of each token of the text with a greater score. Documents without a score
    (null), held-out ones, filtered ones and those of other phases are left out. A document without sentences is just
    its EOS. Block i is tokens [i * T, (i + 1) * T) of the sequence; the last partial block is dropped.

    Attributes:
        documents: int64, indices into the store of the documents in the stream.
        num_tokens: length of the sequence, including the dropped tokens at its end.
    """

    def __init__(self, store: TokenStore, column: str, options: StreamOptions) -> None:
        self.store = store
        self.column = column
        self.options = options
        self._scores = store.scores(column)
        self._found = None if options.findings is None else store.found_tokens(options.findings)
        self._credited = None if options.credit is None else credit_scores(store, options.credit)
        self._layout = load_layout(store, column, options)
        self.documents: NDArray[np.int64] = self._layout.documents
        self.num_tokens = int(self._layout.piece_starts[-1])

    @property
    def num_blocks(self) -> int:
        """Number of whole blocks."""
        return self.num_tokens // self.options.context_length

    @property
    def document_starts(self) -> NDArray[np.int64]:
        """int64 [documents + 1], position in the stream of each document's first token, and the stream's length."""
        starts = self._layout.piece_starts
        return np.append(starts[:-1][self._layout.piece_eos.astype(np.bool_)], starts[-1])

    def block(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return one block: token ids int64 [T] and scores float32 [T]."""
        batch = self.blocks([index])
        return batch.input_ids[0], batch.scores[0]

    def documents_in(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Return the documents that blocks contain: indices into the store, ascending, int64."""
        begin = np.asarray(indices, dtype=np.int64).reshape(-1) * self.options.context_length
        first, last = self._pieces(begin)
        return np.unique(self._layout.piece_document[ragged_ranges(first, last - first)])

    def _pieces(self, begin: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        # Pieces that overlap a block: from the last that starts at or before its first token to the last that starts
        # before its end.
        first = np.searchsorted(self._layout.piece_starts, begin, side="right") - 1
        return first, np.searchsorted(self._layout.piece_starts, begin + self.options.context_length - 1, side="right")

    def blocks(self, indices: ArrayLike) -> Batch:
        """Return the blocks with indices [B] in [0, num_blocks), in the given order.

        Raises:
            IndexError: an index is out of range.
        """
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(chosen) and not (chosen.min() >= 0 and chosen.max() < self.num_blocks):
            raise IndexError(f"blocks go from 0 to {self.num_blocks - 1}")
        length = self.options.context_length
        ids = np.zeros(len(chosen) * length, dtype=np.int64)
        scores = np.zeros(len(chosen) * length, dtype=np.float32)
        begin = chosen * length
        first, last = self._pieces(begin)
        piece = ragged_ranges(first, last - first)
        # `shift` maps a position in the stream to one in the flattened result, where a block spans low to low + length.
        row = np.repeat(np.arange(len(chosen)), last - first)
        shift = row * length - begin[row]
        low = row * length

        start = self._layout.piece_starts[piece] + shift
        begins = self._layout.piece_eos[piece].astype(np.bool_)
        between = self.options.between
        for number, token in enumerate(between):
            here = start + number
            ids[here[begins & (here >= low) & (here < low + length)]] = token

        counts = self._layout.piece_end[piece] - self._layout.piece_begin[piece]
        sentence = ragged_ranges(self._layout.piece_begin[piece], counts)
        document = np.repeat(self._layout.piece_document[piece], counts)
        source = self.store.sentence_offsets[sentence]
        tagged = has_tag(self.store, self.options, sentence, document)
        lengths = self.store.sentence_offsets[sentence + 1] - source
        sizes = lengths + tagged * self.options.tags_a_sentence
        # Where each sentence starts: a running sum over all pieces, corrected at the start of each piece.
        ends = np.cumsum(sizes)
        before = np.concatenate([np.zeros(1, dtype=np.int64), ends])[np.cumsum(counts) - counts]
        place = ends - sizes + np.repeat(start + begins * len(between) - before, counts)
        low = np.repeat(low, counts)
        sentence_scores = self._scores[sentence]

        text = place + (tagged if self.options.tag_ids else 0)
        for tokens, at in ((self.options.tag_ids, place), (self.options.after_ids, text + lengths)):
            if tokens:
                here = tagged & (at >= low) & (at < low + length)
                ids[at[here]] = np.array(tokens, dtype=np.int64)[self._classes(sentence_scores[here])]
                scores[at[here]] = sentence_scores[here]

        cut = np.maximum(low - text, 0)
        taken = np.maximum(np.minimum(text + lengths, low + length) - text - cut, 0)
        target = ragged_ranges(text + cut, taken)
        own = ragged_ranges(source + cut, taken)
        ids[target] = self.store.tokens[own]
        scores[target] = np.repeat(sentence_scores, taken) if self._credited is None else self._credited[own]
        if self._found is not None:
            scores[target] *= self._found[own]
        if self.options.hide_above is not None and self.options.hidden_id is not None:
            ids[target[scores[target] > np.float32(self.options.hide_above)]] = self.options.hidden_id
        return Batch(ids.reshape(-1, length), scores.reshape(-1, length))

    def held_out_documents(self) -> NDArray[np.int64]:
        """Return the indices of held-out documents with a score, in the order of the dataset."""
        return self._layout.held_out

    def document(self, index: int, *, swap_tags: bool = False) -> DocumentTokens:
        """Return a document of the store as the stream would show it, in the stream or not.

        No tag is dropped, and nothing is hidden: a model is measured on the whole text.

        Args:
            index: of the document in the store; it must have a score.
            swap_tags: replace each control token before a sentence by that of the mirrored class: the best by the
                worst.
        """
        store = self.store
        first, last = store.document_offsets[index : index + 2]
        offsets = store.sentence_offsets[first : last + 1]
        sentences, extra = int(last - first), self.options.tags_a_sentence
        text = np.asarray(store.tokens[offsets[0] : offsets[-1]], dtype=np.int64)
        is_text = np.ones(1 + sentences * extra + len(text), dtype=np.bool_)
        is_text[0] = False
        ids = np.full(len(is_text), self.options.begins_with, dtype=np.int64)
        before, after = self.options.tag_ids, self.options.after_ids
        place = 1 + offsets[:-1] - offsets[0] + np.arange(sentences) * extra
        end = place + bool(before) + np.diff(offsets)
        for tokens, at in ((before[::-1] if swap_tags else before, place), (after, end)):
            if tokens and extra:
                is_text[at] = False
                ids[at] = np.array(tokens, dtype=np.int64)[self._classes(self._scores[first:last])]
        ids[is_text] = text
        return DocumentTokens(ids, is_text, int(store.text_bytes[index]))

    def count_aligned(self, threshold: float, column: str | None = None) -> tuple[int, int]:
        """Count the stream's sentences with a score <= threshold, and all of them.

        Args:
            threshold: on the score.
            column: of the score; None for the stream's own.
        """
        scores = self._scores if column is None else self.store.scores(column)
        aligned = total = 0
        for sentence, _ in self._layout.sentence_chunks():
            aligned += int(np.count_nonzero(is_aligned(scores[sentence], threshold)))
            total += len(sentence)
        return aligned, total

    def sentence_chunks(self) -> Iterator[NDArray[np.int64]]:
        """Yield the indices into the store of all sentences of the stream, in order, some millions at a time."""
        return (sentence for sentence, _ in self._layout.sentence_chunks())

    def sentence_scores(self) -> NDArray[np.float32]:
        """Return the scores of all sentences of the stream, in order."""
        parts = [self._scores[sentence] for sentence in self.sentence_chunks()]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)

    def document_means(self) -> NDArray[np.float64]:
        """Return the mean scores of the stream's documents and of those that were filtered out."""
        means = self.store.document_means(self.column)
        return means[np.union1d(self.documents, self._layout.filtered)]

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """Counts of what is in the stream and what was left out, as plain numbers."""
        sentences = 0
        tags = np.zeros(self.options.classes, dtype=np.int64)
        for sentence, document in self._layout.sentence_chunks():
            sentences += len(sentence)
            tagged = has_tag(self.store, self.options, sentence, document)
            if self.options.tag_bounds is not None:
                tags += np.bincount(self._classes(self._scores[sentence][tagged]), minlength=len(tags))
        control = int(tags.sum()) * self.options.tags_a_sentence
        used, held_out, filtered = len(self.documents), len(self._layout.held_out), len(self._layout.filtered)
        null = int(np.count_nonzero(np.isnan(self.store.document_means(self.column))))
        statistics: dict[str, Any] = {
            "documents": self.store.num_documents,
            "documents_used": used,
            "documents_empty": int(np.count_nonzero(np.diff(self.store.document_offsets)[self.documents] == 0)),
            "documents_left_out": {
                "null_score": null,
                "held_out": held_out,
                "filtered": filtered,
            },
            "sentences": sentences,
            "tokens": self.num_tokens,
            "tokens_text": self.num_tokens - used * len(self.options.between) - control,
            "tokens_control": control,
            "tokens_eos": used,
            "context_length": self.options.context_length,
            "blocks": self.num_blocks,
            "tokens_dropped_at_end": self.num_tokens - self.num_blocks * self.options.context_length,
        }
        if len(self.options.between) > 1:
            statistics["tokens_bos"] = used
        if self.options.part is not None:
            others = self.store.num_documents - used - held_out - filtered - null
            statistics["documents_left_out"]["other_phases"] = others
        if self.options.tag_bounds is not None:
            names = tag_names(len(tags))
            statistics["tag_bounds"] = list(self.options.tag_bounds)
            statistics["tags"] = {
                **dict(zip(names, tags.tolist(), strict=True)),
                "dropped": sentences - int(tags.sum()),
            }
        if self.options.hide_above is not None:
            statistics["tokens_hidden"] = sum(self._count_hidden(sentence) for sentence in self.sentence_chunks())
        if self.options.findings is not None:
            statistics["findings"] = self.store.findings_counts(self.options.findings)
        return statistics

    @property
    def credit(self) -> str | None:
        """The fingerprint of the token scores that `phf credit` learnt; None if tokens carry their sentence's."""
        return None if self.options.credit is None else read_credit(self.store, self.options.credit).fingerprint

    def _count_hidden(self, sentence: NDArray[np.int64]) -> int:
        limit = np.float32(self.options.hide_above or 0.0)
        scores, first = self._scores[sentence], self.store.sentence_offsets[sentence]
        sizes = self.store.sentence_offsets[sentence + 1] - first
        if self._found is None and self._credited is None:
            return int(sizes[scores > limit].sum())
        hidden = 0
        for start in range(0, len(sentence), _COUNTED):
            some = slice(start, start + _COUNTED)
            own = ragged_ranges(first[some], sizes[some])
            each = np.repeat(scores[some], sizes[some]) if self._credited is None else self._credited[own]
            hidden += int(np.count_nonzero((each if self._found is None else each * self._found[own]) > limit))
        return hidden

    def _classes(self, scores: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the class of each score, the number of bounds that it is above: 0 is the best."""
        bounds = np.array(self.options.tag_bounds or (), dtype=np.float32)
        return np.searchsorted(bounds, scores, side="left")
