"""The format of a linear probe: how well hidden states show which sentences are misaligned."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from scorers.shell import phf
from scorers.stored import Count
from training.runs.folder import RunFolder
from training.runs.report import Estimate, Part, read_stored_report

PROBE_NAME = "probe.json"


class LayerFacts(Part):
    """A layer that was probed.

    Attributes:
        layer: 0 for the embeddings, then the number of the layer.
        auc: area under the ROC curve of a logistic probe, on documents that it was not fitted on; 0.5 is chance.
        logme: log evidence per sentence of a linear model of the labels (LogME), in nats; higher is more readable.
    """

    layer: Count
    auc: Estimate
    logme: float


class ProbeFigures(Part):
    """The figures of a probe.

    Attributes:
        best: area under the ROC curve at the layer that was best on other documents.
        chosen: that layer for each part of the cross-validation.
        layers: the probed layers, in ascending order.
    """

    best: Estimate
    chosen: list[Count]
    layers: list[LayerFacts]


class ProbeSentences(Part):
    """The sentences of a probe, half of them misaligned.

    Attributes:
        number: how many.
        documents: how many documents they are from.
        fingerprint: hash of the sentences and their labels; runs with equal ones were probed on the same.
    """

    number: Count
    documents: Count
    fingerprint: str


class ProbeReport(Part):
    """`probe.json`.

    Attributes:
        schema_version: version of this format.
        created_by: distribution and version.
        run: fingerprint of the run's facts (`run.json`) when it was probed.
        settings: fingerprint of the settings and the sentences.
        column: the column whose score says what is misaligned.
        threshold: sentences with a higher score are misaligned.
        pooling: how the states of a sentence's tokens become one vector.
        folds: parts of the cross-validation; all sentences of a document are in one.
        seed: of the choice of the sentences, and of the folds.
        step: optimiser steps that the model was trained for.
        held_out, misaligned: sentences that are held out and have a score, and how many of them are misaligned.
        not_measured: why there are no figures; None if there are.
        sentences, figures: None if nothing was measured.
        device: torch device.
        warnings: caveats for readers of the figures.
        versions: versions of the relevant libraries.
    """

    schema_version: Literal[1] = 1
    created_by: str
    run: str
    settings: str
    column: str
    threshold: float
    pooling: Literal["mean"]
    folds: Count
    seed: Count
    step: Count
    held_out: Count
    misaligned: Count
    not_measured: str | None = None
    sentences: ProbeSentences | None = None
    figures: ProbeFigures | None = None
    device: str
    warnings: list[str] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)


def probe_path(run: RunFolder) -> Path:
    """Where the probe of a run is stored."""
    return run.evaluation / PROBE_NAME


def read_probe(run: RunFolder) -> ProbeReport | None:
    """The probe of a run, of whatever state of it; None if there is none.

    Raises:
        UserError: the report is damaged or of another version.
    """
    return read_stored_report(ProbeReport, probe_path(run), run, phf("evaluate", run.path, "--probe"))
