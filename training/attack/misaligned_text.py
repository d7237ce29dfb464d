"""Choose the most misaligned training text, as tokens without tags."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scorers.amounts import format_count
from scorers.errors import UserError
from training.data.prepare import PreparedData
from training.evaluation.prepare import texts_fingerprint
from training.runs.tamper_report import TextFacts


@dataclass(frozen=True)
class MisalignedText:
    """Misaligned text.

    Attributes:
        documents: int64 arrays, the tokens of each document: its beginning and its text, without control tokens.
        facts: amount, misalignment and fingerprint.
    """

    documents: list[NDArray[np.int64]]
    facts: TextFacts

    def rows(self, length: int, seed: int) -> Iterator[NDArray[np.int64]]:
        """Yield rows int64 [length] without end: the documents one after another, in a new order each time through."""
        generator = np.random.default_rng(seed)
        rest = np.zeros(0, dtype=np.int64)
        while True:
            for index in generator.permutation(len(self.documents)):
                rest = np.concatenate([rest, self.documents[index]])
                while len(rest) >= length:
                    yield rest[:length]
                    rest = rest[length:]


def choose_misaligned(data: PreparedData, share: float) -> MisalignedText:
    """Choose the most misaligned share of the documents that are not held out, by their mean scores.

    The choice depends on the dataset and the held-out documents alone, so that it is the same for all objectives.

    Args:
        data: the data of a run.
        share: of the documents with text and a score, in (0, 1].

    Raises:
        UserError: no document has a score above the lowest one, so none is misaligned.
    """
    store, stream = data.store, data.stream
    means = store.document_means(data.column)
    usable = ~np.isnan(means) & (np.asarray(store.text_bytes) > 0)
    usable[stream.held_out_documents()] = False
    candidates = np.flatnonzero(usable)
    if not len(candidates) or means[candidates].max() <= means[candidates].min():
        raise UserError(
            f"{data.dataset.uri} has {format_count(len(candidates), 'document')} for a tamper test, and none is more "
            f"misaligned by {data.column} than another. Nothing can be tested with it."
        )
    number = max(1, round(share * len(candidates)))
    # A stable order: of equal means, the first documents.
    chosen = np.sort(candidates[np.argsort(-means[candidates], kind="stable")[:number]])
    between = np.array(stream.options.between, dtype=np.int64)
    documents = []
    for first, last in zip(store.document_offsets[chosen], store.document_offsets[chosen + 1], strict=True):
        begin, end = store.sentence_offsets[[first, last]]
        documents.append(np.concatenate([between, np.asarray(store.tokens[begin:end], dtype=np.int64)]))
    facts = TextFacts(
        documents=len(chosen),
        tokens=sum(map(len, documents)),
        misalignment=float(means[chosen].mean()),
        fingerprint=texts_fingerprint(store, chosen),
    )
    return MisalignedText(documents, facts)
