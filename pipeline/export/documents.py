"""The documents of a labelled dataset with the scores of one column, as exports write them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, repeat

import pyarrow as pa

from pipeline.dataset import LabelledDataset
from pipeline.dataset.spans import columns_of_spans, spans_of
from scorers.spans import by_sentence, redacted

READ_ROWS = 256


@dataclass
class Exported:
    """The result of an export.

    Attributes:
        documents, sentences: totals of the written rows.
        left_out: documents to which the scorer does not apply, which the format cannot represent.
        unsearched: documents that are left out because a scorer whose findings are redacted does not apply to them.
        files: paths below an output folder, or the name of the output file.
    """

    documents: int = 0
    sentences: int = 0
    left_out: int = 0
    unsearched: int = 0
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """A document with its scores.

    Attributes:
        doc_id: of the dataset.
        text: as in the dataset.
        sentences: of the text, with what was found replaced by its type.
        meta: JSON.
        scores: one per sentence, exact float32 values.
    """

    doc_id: str
    text: str
    sentences: list[str]
    meta: str
    scores: list[float]


def columns_read(column: str, redact: Sequence[str]) -> list[str]:
    """The columns of the dataset that `documents` reads."""
    names = ["doc_id", "text", "meta", "ends", column]
    return list(dict.fromkeys([*names, *(name for each in redact for name in columns_of_spans(each))]))


def documents(
    dataset: LabelledDataset,
    batches: Iterable[pa.RecordBatch],
    column: str,
    redact: Sequence[str],
    exported: Exported,
) -> Iterator[Document]:
    """Yield the documents of batches with a score and searched for what is redacted; count the others.

    Args:
        dataset: of the batches.
        batches: with `columns_read`.
        column: of the scores.
        redact: columns with spans.
        exported: `left_out` and `unsearched` are counted here.
    """
    names = ["doc_id", "text", "meta", "ends", column]
    for batch in batches:
        found = zip(*(spans_of(dataset, batch, each) for each in redact), strict=True) if redact else repeat(())
        rows = zip(*(batch.column(name).to_pylist() for name in names), strict=True)
        for (doc_id, text, meta, ends, scores), spans in zip(rows, found, strict=False):
            if scores is None:
                exported.left_out += 1
                continue
            if any(each is None for each in spans):
                exported.unsearched += 1
                continue
            sentences = [text[start:end] for start, end in pairwise([0, *ends])]
            if redact:
                hidden = by_sentence((finding for each in spans for finding in each or ()), ends)
                sentences = [redacted(sentence, each) for sentence, each in zip(sentences, hidden, strict=True)]
            yield Document(doc_id, text, sentences, meta, scores)
