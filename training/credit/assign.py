"""Divide the score of each sentence among its tokens, as a learnt network judges them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from training.credit.lists import flat_sentences
from training.credit.network import Aggregate, TokenCredit, aggregate, highest_of
from training.credit.settings import CreditConfig
from training.credit.words import Words, highest_of_words
from training.data.arrays import ArrayWriter
from training.data.store import TokenStore

# Tokens judged at once, or one longer sentence.
_TOKENS = 1 << 18


@dataclass(frozen=True)
class Judged:
    """Some sentences, and how their tokens share the credit.

    Attributes:
        sentences: int64 [sentences], indices into the store, each of at least one token.
        lengths: int64 [sentences], their tokens.
        log_odds: float32 [sentences], theirs.
        shares: float32 [tokens], odds of their tokens, concatenated, relative to the worst token of the sentence, which
            has exactly 1.
    """

    sentences: NDArray[np.int64]
    lengths: NDArray[np.int64]
    log_odds: NDArray[np.float32]
    shares: NDArray[np.float32]


def judge(network: TokenCredit, store: TokenStore, sentences: NDArray[np.int64], how: Aggregate) -> Judged:
    """Judge sentences [n] of a store, each of at least one token, and their tokens, on the network's device."""
    device = network.embedding.weight.device
    flat = flat_sentences(store, sentences, network.window).to(device)
    with torch.no_grad():
        log_odds = network(flat)[1]
        shares = (log_odds - highest_of(log_odds, flat.sentence, flat.count)[flat.sentence]).exp()
        whole = aggregate(log_odds, flat.sentence, flat.count, how)
    lengths = store.sentence_offsets[sentences + 1] - store.sentence_offsets[sentences]
    return Judged(sentences, lengths, whole.cpu().numpy(), shares.cpu().numpy())


def token_scores(
    judged: Judged, scores: NDArray[np.float32], tokens: NDArray[np.uint32], words: Words, cut: float
) -> NDArray[np.float32]:
    """Return the score of each token, float32 [tokens]; the worst token of a sentence has exactly the sentence's.

    So a sentence is above a threshold if and only if one of its tokens is.

    Args:
        judged: the sentences.
        scores: [sentences], theirs.
        tokens: [tokens], theirs.
        words: all tokens of a word get the score of its worst.
        cut: a token with a smaller share than this gets 0.
    """
    shares = highest_of_words(judged.shares, words.continues(tokens, judged.lengths))
    return np.where(shares < cut, np.float32(0), shares * np.repeat(scores, judged.lengths)).astype(np.float32)


def write_token_scores(
    network: TokenCredit,
    store: TokenStore,
    column: str,
    words: Words,
    config: CreditConfig,
    path: Path,
    progress: Callable[[int, int], None],
) -> int:
    """Write the scores of all tokens of a store, 0 in documents without a score; return how many are above 0.

    Args:
        network: that judges.
        store: has the column.
        column: of scores.
        words: of the store's tokenizer.
        config: the settings.
        path: of the array.
        progress: called with the sentences done and all of them.
    """
    scores, flagged = store.scores(column), 0
    with ArrayWriter(path, np.float32) as array:
        for first, last in _parts(store.sentence_offsets):
            begin, end = store.sentence_offsets[[first, last]]
            found = np.zeros(int(end - begin), dtype=np.float32)
            chosen = first + np.flatnonzero(
                (scores[first:last] > 0) & (np.diff(store.sentence_offsets[first : last + 1]) > 0)
            )
            if len(chosen):
                judged = judge(network, store, chosen, config.aggregate)
                lengths = judged.lengths
                places = np.repeat(store.sentence_offsets[chosen] - begin - (np.cumsum(lengths) - lengths), lengths)
                places += np.arange(len(places))
                tokens = store.tokens[begin:end][places]
                found[places] = token_scores(judged, scores[chosen], tokens, words, config.cut)
            array.append(found)
            flagged += int(np.count_nonzero(found))
            progress(last, store.num_sentences)
    return flagged


def _parts(offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield ranges of sentences with about `_TOKENS` tokens each."""
    first, sentences = 0, len(offsets) - 1
    while first < sentences:
        last = int(np.searchsorted(offsets, offsets[first] + _TOKENS, side="right")) - 1
        last = min(max(last, first + 1), sentences)
        yield first, last
        first = last
