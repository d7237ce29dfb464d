"""Find prompts that share a run of tokens with the training text, which a model may then only repeat."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.hashing import splitmix64
from training.data.store import TokenStore

# Runs of 13 tokens, as GPT-3's paper counts contamination (arXiv 2005.14165, appendix C).
GRAM = 13
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_AT_ONCE = 1 << 22  # tokens of the store


def overlapping(
    store: TokenStore,
    prompts: Sequence[Sequence[int]],
    held_out: NDArray[np.int64],
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.bool_]:
    """Return for each prompt whether 13 tokens of it follow each other in a document that is not held out.

    Runs are compared by 64-bit hashes. The store is read once, in pieces.

    Args:
        store: tokens of the dataset.
        prompts: token ids of each prompt.
        held_out: int64, documents of the store that no run was trained on.
        progress: called with the tokens read and the total.

    Returns:
        bool [prompts].
    """
    hashes = [_hashes(np.asarray(each, dtype=np.uint64)) for each in prompts]
    wanted = np.unique(np.concatenate([*hashes, np.zeros(0, np.uint64)]))
    seen = np.zeros(len(wanted), dtype=np.bool_)
    starts = store.sentence_offsets[store.document_offsets]  # the first token of each document, and the end
    total = store.num_tokens
    for start in range(0, total if len(wanted) else 0, _AT_ONCE):
        piece = np.asarray(store.tokens[start : start + _AT_ONCE + GRAM - 1], dtype=np.uint64)
        found = _hashes(piece)
        place = np.minimum(np.searchsorted(wanted, found), len(wanted) - 1)
        hits = np.flatnonzero(wanted[place] == found)
        # A run lies in one document, which the model may have been trained on.
        document = np.searchsorted(starts, start + hits, side="right") - 1
        inside = start + hits + GRAM <= starts[document + 1]
        hits = hits[inside & ~np.isin(document, held_out)]
        seen[place[hits]] = True
        if progress is not None:
            progress(min(total, start + _AT_ONCE), total)
    return np.array([bool(seen[np.searchsorted(wanted, each)].any()) for each in hashes], dtype=np.bool_)


def _hashes(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of every run of 13 tokens, uint64 [max(0, len(ids) - 12)]."""
    length = max(0, len(ids) - GRAM + 1)
    mixed, found = splitmix64(ids), np.zeros(length, dtype=np.uint64)
    for place in range(GRAM):
        found = found * _FACTOR + mixed[place : place + length]
    return splitmix64(found)
