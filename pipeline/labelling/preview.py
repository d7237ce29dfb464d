"""Label the first records of some inputs in this process, to see what scores and tags look like; writes nothing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import LabelConfig
from pipeline.corpus.fields import check_fields
from pipeline.corpus.inputs import find_sources
from pipeline.corpus.readers import read_sources
from pipeline.corpus.records import Quarantined
from pipeline.dataset.tags import is_aligned
from pipeline.labelling.resolve import resolve_config
from pipeline.labelling.workers.label_records import Scored, label_records
from pipeline.sealing.thresholds import resolve_thresholds, threshold_specs
from scorers.registry import build


@dataclass(frozen=True)
class Preview:
    """A few labelled records.

    Attributes:
        specs: what was asked for as threshold, by column.
        thresholds: their values; a percentile is taken over these few sentences, not over the corpus.
        scored, quarantined: what became of the records, each list in their order.
    """

    specs: dict[str, str]
    thresholds: dict[str, float]
    scored: list[Scored]
    quarantined: list[Quarantined]

    def tags(self, document: Scored, column: str) -> NDArray[np.bool_] | None:
        """Whether each sentence of a document is aligned; None where the scorer does not apply."""
        scores = document.scores[column]
        return None if scores is None else is_aligned(scores, self.thresholds[column])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the records' texts among them."""
        return {
            "thresholds": {
                column: {"spec": spec, "value": self.thresholds[column]} for column, spec in self.specs.items()
            },
            "documents": [self._document(each) for each in self.scored],
            "quarantined": [
                {"source": each.source, "position": each.position, "reason": each.reason, "detail": each.detail}
                for each in self.quarantined
            ],
        }

    def _document(self, document: Scored) -> dict[str, Any]:
        record = document.record
        columns: dict[str, dict[str, list[Any]] | None] = {}
        for column, scores in document.scores.items():
            tags = self.tags(document, column)
            columns[column] = (
                None if scores is None or tags is None else {"scores": scores.tolist(), "aligned": tags.tolist()}
            )
        return {
            "doc_id": record.doc_id,
            "source": record.source,
            "position": record.position,
            "kind": record.kind,
            "sentences": document.document.sentences(),
            "columns": columns,
        }


def preview(config: LabelConfig, limit: int) -> Preview:
    """Label the first `limit` records of the inputs, with the scorers and the code of a labelling job, but no Ray.

    Raises:
        UserError: as of `phf label`: inputs, settings or scorers that are not right.
    """
    resolved = resolve_config(config)
    sources = find_sources(config.inputs, config.kind)
    check_fields(sources, config)
    scorers = {column: build(column, spec, config.execution.of(column)) for column, spec in resolved.specs.items()}
    labelled = label_records(
        islice(read_sources(sources, resolved.config), limit),
        scorers,
        max_document_size=config.max_document_size,
        large_documents=config.large_documents,
    )
    specs = threshold_specs(list(scorers), config.thresholds)
    values = resolve_thresholds(specs, lambda columns: _scores(labelled.scored, columns))
    return Preview(specs, values, labelled.scored, labelled.quarantined)


def _scores(scored: Sequence[Scored], columns: Sequence[str]) -> Iterable[Mapping[str, NDArray[np.float32]]]:
    for each in scored:
        yield {column: scores for column in columns if (scores := each.scores[column]) is not None}
