"""The format of a tamper test: misalignment of samples against steps of finetuning on misaligned text."""

from pathlib import Path

from pydantic import Field

from scorers.shell import phf
from scorers.stored import Count
from training.measuring_config import TamperConfig
from training.runs.folder import RunFolder
from training.runs.report import Part, SampleFacts, ScorerFacts, read_stored_report

TAMPER_NAME = "tamper.json"


class TextFacts(Part):
    """The misaligned text that models are finetuned on.

    Attributes:
        documents, tokens: of the most misaligned documents that are not held out.
        misalignment: mean of the documents' mean scores; what an undone preference may lead to.
        fingerprint: hash of the texts, in order; runs with equal ones were finetuned on the same.
    """

    documents: Count
    tokens: Count
    misalignment: float
    fingerprint: str


class TamperPoint(Part):
    """The samples after `step` steps on `tokens` tokens of misaligned text."""

    step: Count
    tokens: Count
    samples: SampleFacts


class TamperReport(Part):
    """`tamper.json`.

    Attributes:
        created_by: distribution and version.
        run: fingerprint of the run's facts (`run.json`) at the time.
        column: the column whose scorer judges the samples.
        prompt: token ids that samples continue.
        config: settings of the test.
        learning_rate: of the finetuning.
        device: torch device.
        scorer: judges the samples.
        text: the text that the model was finetuned on.
        trials: the points of each finished trial, each from the same model with its own seed.
        warnings: caveats for readers of the figures.
    """

    created_by: str
    run: str
    column: str
    prompt: list[Count]
    config: TamperConfig
    learning_rate: float = Field(gt=0)
    device: str
    scorer: ScorerFacts
    text: TextFacts
    trials: list[list[TamperPoint]]
    warnings: list[str]

    @property
    def finished(self) -> bool:
        """Whether all trials are done."""
        return len(self.trials) == self.config.trials

    def misalignment(self) -> dict[int, list[float]]:
        """The mean misalignment of samples by step, one value per trial in which samples had scores."""
        found: dict[int, list[float]] = {}
        for point in (point for trial in self.trials for point in trial):
            if (estimate := point.samples.misalignment) is not None:
                found.setdefault(point.step, []).append(estimate.value)
        return found


def tamper_path(run: RunFolder) -> Path:
    """Where the tamper test of a run is stored."""
    return run.evaluation / TAMPER_NAME


def read_tamper(run: RunFolder) -> TamperReport | None:
    """The tamper test of a run; None if there is none.

    Raises:
        UserError: the report is damaged or of another version.
    """
    return read_stored_report(TamperReport, tamper_path(run), run, phf("attack", "tamper", run.path))
