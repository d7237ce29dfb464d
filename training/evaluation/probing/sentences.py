"""Choose held-out sentences for a probe: as many misaligned as aligned ones, each in the context of its document."""

import hashlib
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.tags import is_aligned
from scorers.amounts import format_count
from training.data.index import ragged_ranges
from training.data.prepare import PreparedData

FOLDS = 5
LEAST = 20  # sentences of each class
# At most this share of the sentences of a class is from one document, so that no long one decides.
_SHARE_OF_A_DOCUMENT = 1 / 20


class NotMeasurableError(Exception):
    """The held-out text has too few sentences of a class; the message says which, and what to do."""


@dataclass(frozen=True)
class HeldOutSentences:
    """All held-out sentences with a score and tokens, arrays of [n], in order.

    Attributes:
        rows: int64, sentences of the store.
        documents: int64, their documents in the store.
        misaligned: bool.
    """

    rows: NDArray[np.int64]
    documents: NDArray[np.int64]
    misaligned: NDArray[np.bool_]


@dataclass(frozen=True)
class ChosenSentences:
    """The sentences of a probe, arrays of [n], in the order of the store.

    Attributes:
        rows, documents, misaligned: as in `HeldOutSentences`; half are misaligned.
        texts: int64, the same for sentences of documents with the same text.
        folds: int64, below `FOLDS`; sentences of the same text share one, and each has both classes.
        fingerprint: hash of the sentences and their labels.
    """

    rows: NDArray[np.int64]
    documents: NDArray[np.int64]
    misaligned: NDArray[np.bool_]
    texts: NDArray[np.int64]
    folds: NDArray[np.int64]
    fingerprint: str


def held_out_sentences(data: PreparedData, threshold: float) -> HeldOutSentences:
    """Find the held-out sentences; those with a score above `threshold` in the column of reports are misaligned."""
    store, held_out = data.store, data.stream.held_out_documents()
    counts = np.diff(store.document_offsets)[held_out]
    rows = ragged_ranges(store.document_offsets[held_out], counts)
    scores = store.scores(data.column)[rows]
    usable = ~np.isnan(scores) & (store.sentence_offsets[rows + 1] > store.sentence_offsets[rows])
    documents = np.repeat(held_out, counts)
    return HeldOutSentences(rows[usable], documents[usable], ~is_aligned(scores[usable], threshold))


def choose_sentences(data: PreparedData, found: HeldOutSentences, *, most: int, seed: int) -> ChosenSentences:
    """Choose at most `most` of the sentences at random, no two of a class with the same tokens, and few of a document.

    Repeated sentences are left out, because a probe would recognise those of the documents that it was fitted on.

    Args:
        data: the prepared data.
        found: from `held_out_sentences`.
        most: at least 2.
        seed: decides the choice and the folds.

    Raises:
        NotMeasurableError: a class has too few sentences, or is in too few documents.
    """
    if not len(found.rows):
        share = data.config.data.held_out
        why = "data.held_out is 0" if share == 0 else f"data.held_out={share:g} happens to select no scored sentence"
        raise NotMeasurableError(
            f"no scored sentence was held out of training ({why}). Train with a larger share, such as "
            "--set data.held_out=0.05."
        )
    order = np.random.default_rng(seed).permutation(len(found.rows))
    classes = [
        _distinct(data, found, order[found.misaligned[order] == misaligned], most // 2) for misaligned in (False, True)
    ]
    for name, each in zip(("aligned", "misaligned"), classes, strict=True):
        if len(each) < LEAST:
            raise NotMeasurableError(
                f"of {format_count(len(found.rows), 'held-out sentence')}, {len(each) or 'none'} "
                f"{'is' if len(each) == 1 else 'are'} {name} and distinct, and a probe needs {LEAST}. Train with a "
                "larger data.held_out, or label more text."
            )
    size = min(map(len, classes))
    chosen = np.sort(np.concatenate([each[:size] for each in classes]))
    rows, documents, misaligned = found.rows[chosen], found.documents[chosen], found.misaligned[chosen]
    hashes = data.store.text_hashes[documents]
    texts = np.unique(hashes, return_inverse=True)[1].astype(np.int64)
    numbers = rows - data.store.document_offsets[documents]
    content = np.column_stack([hashes, numbers.astype(np.uint64), misaligned.astype(np.uint64)])
    return ChosenSentences(
        rows=rows,
        documents=documents,
        misaligned=misaligned,
        texts=texts,
        folds=_folds(misaligned, texts, seed),
        fingerprint=hashlib.sha256(np.ascontiguousarray(content).tobytes()).hexdigest()[:16],
    )


def _distinct(data: PreparedData, found: HeldOutSentences, order: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """The first `most` of `order` (indices) that repeat none before, and whose documents have few before."""
    store, seen, of_document, chosen = data.store, set[bytes](), Counter[int](), list[int]()
    most_of_document = math.ceil(most * _SHARE_OF_A_DOCUMENT)
    for index in order.tolist():
        row, text = found.rows[index], int(store.text_hashes[found.documents[index]])
        first, last = store.sentence_offsets[row : row + 2]
        tokens = store.tokens[first:last].tobytes()
        if tokens in seen or of_document[text] == most_of_document:
            continue
        seen.add(tokens)
        of_document[text] += 1
        chosen.append(index)
        if len(chosen) == most:
            break
    return np.array(chosen, dtype=np.int64)


def _folds(misaligned: NDArray[np.bool_], texts: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Deal texts into folds with about as many sentences of each class, int64 [n].

    Raises:
        NotMeasurableError: a fold lacks a class.
    """
    counts = np.zeros((int(texts.max()) + 1, 2), dtype=np.int64)
    np.add.at(counts, (texts, misaligned.astype(np.int64)), 1)
    # Large texts first, each into the fold that keeps both classes most even; texts of equal size in random order.
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order].max(axis=1), kind="stable")]
    filled, of_text = np.zeros((FOLDS, 2), dtype=np.int64), np.zeros(len(counts), dtype=np.int64)
    for text in order:
        fold = int(np.argmin(((filled + counts[text]) ** 2 - filled**2).sum(axis=1)))
        of_text[text] = fold
        filled[fold] += counts[text]
    if not filled.all():
        raise NotMeasurableError(
            f"aligned or misaligned sentences are in fewer than {FOLDS} held-out documents, and a probe is fitted on "
            "other documents than it is measured on. Train with a larger data.held_out, or label more text."
        )
    return of_text[texts]
