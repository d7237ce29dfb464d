"""Draw lists of sentences to put in order, as a pure function of the step, so that learning resumes from a number."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.hashing import combine, uniform
from training.credit.network import FlatSentences
from training.data.index import ragged_ranges
from training.data.store import TokenStore

# Of a longer sentence, learning reads the beginning.
_LONGEST = 2048  # tokens
_HELD_OUT = 11  # salts: independent choices from one seed
_CHOSEN = 12


@dataclass(frozen=True)
class Lists:
    """Lists of K sentences.

    Attributes:
        sentences: int64 [lists, K], indices into the store.
        flat: their tokens, list after list.
        order: int64 [lists, K], places in a list by score, worst first, equal scores in an order drawn anew.
    """

    sentences: NDArray[np.int64]
    flat: FlatSentences
    order: NDArray[np.int64]


@dataclass(frozen=True)
class Learnable:
    """The sentences that have tokens and a score, in part to learn from, in part to check what was learnt.

    Attributes:
        learning, held_out: int64, indices into the store, ascending; no text is in both.
    """

    learning: NDArray[np.int64]
    held_out: NDArray[np.int64]


def learnable(store: TokenStore, column: str, *, seed: int, held_out: float, most: int) -> Learnable:
    """Choose the sentences, by hashes of their documents' texts.

    Args:
        store: has the column.
        column: of scores.
        seed: of the hashes.
        held_out: share of the documents that are held out.
        most: about how many sentences to use; of a larger store, as many documents as hold them.
    """
    counts = np.diff(store.document_offsets)
    hashes = store.text_hashes
    out = uniform(combine(seed, _HELD_OUT, hashes)) < held_out
    used = uniform(combine(seed, _CHOSEN, hashes)) < most / max(1, store.num_sentences)
    used &= ~np.isnan(store.document_means(column))

    def sentences(documents: NDArray[np.bool_]) -> NDArray[np.int64]:
        chosen = np.flatnonzero(np.repeat(documents, counts))
        return chosen[store.sentence_offsets[chosen + 1] > store.sentence_offsets[chosen]]

    return Learnable(sentences(used & ~out), sentences(used & out))


class ListDraw:
    """Draws half of each list evenly, and half in proportion to the scores, as misaligned sentences may be rare.

    Args:
        store: of the sentences.
        scores: float32 [sentences of the store].
        chosen: int64 [n], indices into the store, of which one has a score above 0.
        lists: how many lists a step has.
        size: K, at least 2.
        seed: of the draws.
        window: of the network.
    """

    def __init__(
        self,
        store: TokenStore,
        scores: NDArray[np.float32],
        chosen: NDArray[np.int64],
        *,
        lists: int,
        size: int,
        seed: int,
        window: int,
    ) -> None:
        self._store, self._scores, self._chosen = store, scores, chosen
        self._shape, self._seed, self._window = (lists, size), seed, window
        self._sums = np.cumsum(scores[chosen], dtype=np.float64)

    def draw(self, step: int) -> Lists:
        """Return the lists of a step."""
        generator = np.random.default_rng([self._seed, step])
        lists, size = self._shape
        evenly = generator.integers(len(self._chosen), size=(lists, size // 2))
        places = generator.random((lists, size - size // 2)) * self._sums[-1]
        by_score = np.searchsorted(self._sums, places, side="right").clip(max=len(self._chosen) - 1)
        sentences = self._chosen[np.concatenate([evenly, by_score], axis=1)]
        order = np.lexsort((generator.random(self._shape), -self._scores[sentences]))
        return Lists(sentences, flat_sentences(self._store, sentences.ravel(), self._window, _LONGEST), order)


def flat_sentences(
    store: TokenStore, sentences: NDArray[np.int64], window: int, longest: int | None = None
) -> FlatSentences:
    """Read sentences [n] of a store, each of at least one token, and at most `longest` of their tokens."""
    begins = store.sentence_offsets[sentences]
    lengths = store.sentence_offsets[sentences + 1] - begins
    lengths = lengths if longest is None else np.minimum(lengths, longest)
    return FlatSentences.of(store.tokens[ragged_ranges(begins, lengths)], lengths, window)
