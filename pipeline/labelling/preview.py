"""Label the first records of the inputs in this process, to show their scores and tags. Writes nothing."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import LabelConfig
from pipeline.corpus.fields import check_fields, settle_sentences
from pipeline.corpus.inputs import find_inputs
from pipeline.corpus.readers import read_sources
from pipeline.corpus.records import Quarantined
from pipeline.dataset.manifest import LeftOut
from pipeline.dataset.tags import is_aligned
from pipeline.labelling.resolve import resolve_config
from pipeline.labelling.workers.label_records import Scored, label_records
from pipeline.labelling.workers.scoring import prepared
from pipeline.sealing.thresholds import resolve_thresholds
from scorers.errors import UserError
from scorers.registry import build
from scorers.spans import Finding, LocatesFindings, by_sentence, redacted


@dataclass(frozen=True)
class Preview:
    """A few labelled records.

    Attributes:
        specs: thresholds as given by the user, by column.
        thresholds: their values; a percentile is taken over these few sentences, not over the corpus.
        scored, quarantined: the records, each list in their order.
        findings: for each of `scored`, by column, the findings of each sentence; None if the text is shown unredacted.
        left_out: files among the inputs that are not read.
    """

    specs: dict[str, str]
    thresholds: dict[str, float]
    scored: list[Scored]
    quarantined: list[Quarantined]
    findings: list[dict[str, list[list[Finding]]]] | None = None
    left_out: list[LeftOut] = field(default_factory=list)

    def types(self) -> dict[str, dict[str, int]]:
        """By column whose findings are known, how many of each type there are, the most frequent first."""
        return {
            column: dict(
                Counter(each.type for record in self.scored for each in record.spans[column] or ()).most_common()
            )
            for column in (self.scored[0].spans if self.scored else ())
        }

    def sentences(self, index: int) -> list[str]:
        """The sentences of a scored record, redacted if asked for.

        Redaction replaces findings by their types, and hides records that no scorer has searched.
        """
        sentences = self.scored[index].document.sentences()
        if self.findings is None:
            return sentences
        columns = self.findings[index].values()
        if not columns:
            return ["(not shown: no scorer has searched it)"] * len(sentences)
        return [
            redacted(sentence, (finding for found in columns for finding in found[number]))
            for number, sentence in enumerate(sentences)
        ]

    def tags(self, document: Scored, column: str) -> NDArray[np.bool_] | None:
        """Whether each sentence of a document is aligned; None where the scorer does not apply."""
        scores = document.scores[column]
        return None if scores is None else is_aligned(scores, self.thresholds[column])

    def to_dict(self) -> dict[str, Any]:
        """The preview as plain JSON values, with the texts that `sentences` returns."""
        return {
            "thresholds": {
                column: {"spec": spec, "value": self.thresholds[column]} for column, spec in self.specs.items()
            },
            "types": self.types(),
            "documents": [self._document(index) for index in range(len(self.scored))],
            "quarantined": [
                {"source": each.source, "position": each.position, "reason": each.reason, "detail": each.detail}
                for each in self.quarantined
            ],
            "left_out": [each.model_dump() for each in self.left_out],
        }

    def _document(self, index: int) -> dict[str, Any]:
        document = self.scored[index]
        record = document.record
        columns: dict[str, dict[str, list[Any]] | None] = {}
        for column, scores in document.scores.items():
            tags = self.tags(document, column)
            columns[column] = (
                None if scores is None or tags is None else {"scores": scores.tolist(), "aligned": tags.tolist()}
            )
        facts = {
            "doc_id": record.doc_id,
            "source": record.source,
            "position": record.position,
            "kind": record.kind,
            "sentences": self.sentences(index),
            "columns": columns,
        }
        return facts if self.findings is None else {**facts, "findings": self._found(index)}

    def _found(self, index: int) -> list[dict[str, Any]]:
        """The findings, with offsets in code points into the original sentence and into the record's text."""
        starts = [0, *self.scored[index].document.ends.tolist()]
        return [
            {
                "column": column,
                "type": finding.type,
                "sentence": number,
                "start": finding.start,
                "end": finding.end,
                "text_start": finding.start + starts[number],
                "text_end": finding.end + starts[number],
            }
            for column, sentences in (self.findings or [])[index].items()
            for number, found in enumerate(sentences)
            for finding in found
        ]


def preview(config: LabelConfig, limit: int, *, redact: bool = False) -> Preview:
    """Label the first `limit` records of the inputs with the code of a labelling job, but without Ray.

    `redact` hides what scorers find.

    Raises:
        UserError: invalid inputs, settings or scorers, as in `phf label`; or `redact` without a scorer that locates
            its findings.
    """
    config = resolve_config(config)
    found = find_inputs(config.inputs, config.kind)
    sources = found.sources
    config = settle_sentences(sources, config)
    check_fields(sources, config)
    scorers = {column: build(column, spec, config.execution.of(column)) for column, spec in config.scorers.items()}
    hiding = [column for column, each in scorers.items() if isinstance(each, LocatesFindings) and each.redacts]
    if redact and not hiding:
        raise UserError(
            f"--redact needs a scorer that finds something to hide, such as pii, and none of these does: "
            f"{', '.join(scorers)}."
        )
    locating = {column for column, spec in config.scorers.items() if spec.spans} | {*(hiding if redact else ())}
    labelled = label_records(
        islice(read_sources(sources, config), limit),
        {
            column: prepared(each, config.scorers[column], locating=column in locating)
            for column, each in scorers.items()
        },
        max_document_size=config.max_document_size,
        large_documents=config.large_documents,
    )
    specs = {column: str(spec) for column, spec in config.thresholds.items()}
    values = resolve_thresholds(specs, lambda columns: _scores(labelled.scored, columns))
    findings = [_findings(each, hiding) for each in labelled.scored] if redact else None
    return Preview(specs, values, labelled.scored, labelled.quarantined, findings, found.left_out)


def _findings(scored: Scored, columns: Sequence[str]) -> dict[str, list[list[Finding]]]:
    ends = scored.document.ends.tolist()
    return {column: by_sentence(found, ends) for column in columns if (found := scored.spans[column]) is not None}


def _scores(scored: Sequence[Scored], columns: Sequence[str]) -> Iterable[Mapping[str, NDArray[np.float32]]]:
    for each in scored:
        yield {column: scores for column in columns if (scores := each.scores[column]) is not None}
