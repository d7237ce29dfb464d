"""The format of a run's figures as a classifier (`evaluation/classification/NAME.json`)."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from scorers.shell import phf
from scorers.stored import Count
from training.measuring_config import ClassificationConfig
from training.runs.folder import RunFolder
from training.runs.report import Estimate, Part, read_stored_report
from training.statistics import SHARE, mean_over_seeds

CLASSIFICATION = "classification"


class TrialFacts(Part):
    """A model that was finetuned with one seed.

    Attributes:
        accuracy: share of the test texts whose class it finds.
        macro_f1: mean over the classes of the test texts of the harmonic mean of precision and recall.
        loss: mean cross-entropy of the last epoch's steps, in nats.
    """

    accuracy: float = Field(ge=0, le=1)
    macro_f1: float = Field(ge=0, le=1)
    loss: float


class ClassificationReport(Part):
    """The figures of one file of labelled texts.

    Attributes:
        schema_version: version of this format.
        created_by: distribution and version.
        run: fingerprint of the run's facts (`run.json`) when it was measured.
        name: of the file of texts, without its suffix.
        texts: fingerprint of the texts and their classes, and of which are for the test.
        config: settings.
        learning_rate: the highest one.
        classes: number of classes.
        train, test: number of texts of each side.
        shortened: number of texts of which only the beginning fits into the context.
        majority: share of the test texts that have the most frequent class of the others: what guessing reaches.
        prefix: token ids before every text: the first token of documents, and the control token if there is one.
        condition: name of that control token; None for a run without.
        step: optimiser steps of the pretraining.
        device: torch device.
        trials: the finished trials, each from the same model with its own seed.
    """

    schema_version: Literal[1] = 1
    created_by: str
    run: str
    name: str
    texts: str
    config: ClassificationConfig
    learning_rate: float = Field(gt=0)
    classes: Count
    train: Count
    test: Count
    shortened: Count
    majority: float = Field(ge=0, le=1)
    prefix: list[Count]
    condition: str | None = None
    step: Count
    device: str
    trials: list[TrialFacts]

    @property
    def accuracy(self) -> Estimate | None:
        """The mean over the trials, with a t interval within [0, 1]; None without trials."""
        return self._mean([each.accuracy for each in self.trials])

    @property
    def macro_f1(self) -> Estimate | None:
        """As for the accuracy."""
        return self._mean([each.macro_f1 for each in self.trials])

    @staticmethod
    def _mean(values: list[float]) -> Estimate | None:
        return Estimate.of(mean_over_seeds(values, SHARE)) if values else None


def classification_path(run: RunFolder, name: str) -> Path:
    """The file of the report on a file of texts; characters that a file name should not have are replaced."""
    return run.evaluation / CLASSIFICATION / f"{re.sub(r'[^A-Za-z0-9_.+-]+', '_', name)[:150]}.json"


def read_classification(run: RunFolder, name: str) -> ClassificationReport | None:
    """The report on a file of texts; None if there is none.

    Raises:
        UserError: it is damaged or of another version.
    """
    again = phf("classify", run.path, "--labels", "FILE")
    return read_stored_report(ClassificationReport, classification_path(run, name), run, again)
