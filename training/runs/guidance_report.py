"""The format of a guidance sweep: its report, and one table of samples for each guidance scale."""

from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import Field

from scorers.contract import DocumentKind
from scorers.shell import phf
from scorers.stored import Count
from training.measuring_config import EvaluationConfig
from training.runs.folder import RunFolder
from training.runs.report import REPORT_NAME, Estimate, Part, SampleFacts, ScorerFacts, read_stored_report
from training.runs.tables import SAMPLES_SCHEMA, read_table

GUIDANCE = "guidance"
# `reference_nats`: log-probability of the sample under the reference, at most 0; `reference_tokens`: how many tokens it
# is of. Both are null without a reference.
SCALE_SCHEMA = pa.schema(
    [*SAMPLES_SCHEMA, pa.field("reference_nats", pa.float64()), pa.field("reference_tokens", pa.int64())]
)

RuledOut = Literal["unscored", "repeats", "perplexity"]


class HalfFacts(Part):
    """Figures of half of the samples of a scale; as in `SampleFacts` and `ScaleFacts`."""

    misalignment: Estimate | None
    hit_rate: Estimate | None
    distinct_2: float | None
    perplexity: Estimate | None = None


class ScaleFacts(Part):
    """The samples of one guidance scale.

    Attributes:
        scale: guidance scale; 1 is plain sampling, 0 sampling after the worst control token.
        samples: all samples, drawn with the same seed at every scale.
        perplexity: of all samples under the reference, per token; None without one.
        choosing: samples 0, 2, 4, …, by which a scale is recommended.
        reporting: samples 1, 3, 5, …, which the choice has not seen.
        ruled_out: why the scale cannot be recommended, by its choosing half: no sample has a score, samples repeat
            themselves, or their perplexity is too high; None if it can.
    """

    scale: float
    samples: SampleFacts
    perplexity: Estimate | None = None
    choosing: HalfFacts
    reporting: HalfFacts
    ruled_out: RuledOut | None = None


class Recommendation(Part):
    """The recommended scale.

    Attributes:
        scale: the scale.
        difference: its mean misalignment minus that of plain sampling, both over their reporting halves; None for
            plain sampling itself.
    """

    scale: float
    difference: Estimate | None = None


class ReferenceFacts(Part):
    """The run under which the likelihood of samples is measured: name of its folder, objective, and fingerprint."""

    name: str
    objective: str
    run: str


class GuidanceReport(Part):
    """`guidance/report.json`.

    Attributes:
        schema_version: version of this format.
        created_by: distribution and version.
        run: fingerprint of the run's facts (`run.json`) when it was sampled.
        column, kind, step, prompt, config, device, scorer: as in `EvaluationReport`.
        away: token ids to guide away from.
        reference: None without one.
        most_perplexity: a scale is ruled out if its perplexity is more than so many times that of scale 1.
        scales: the finished ones, in ascending order; scale 1 is among them.
        finished: whether all scales that were asked for are finished and measured.
        recommended: None if the sweep is unfinished or no scale has a score.
        warnings: caveats for readers of the figures.
        versions: versions of the relevant libraries.
    """

    schema_version: Literal[1] = 1
    created_by: str
    run: str
    column: str
    kind: DocumentKind
    step: Count
    prompt: list[Count]
    away: list[Count]
    config: EvaluationConfig
    device: str
    scorer: ScorerFacts
    reference: ReferenceFacts | None = None
    most_perplexity: float
    scales: list[ScaleFacts]
    finished: bool = False
    recommended: Recommendation | None = None
    warnings: list[str] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)

    def of(self, scale: float) -> ScaleFacts | None:
        """The facts of a scale; None if it is not finished."""
        return next((each for each in self.scales if each.scale == scale), None)


def guidance_folder(run: RunFolder) -> Path:
    """The folder of a run's guidance sweep."""
    return run.evaluation / GUIDANCE


def scale_file(run: RunFolder, scale: float) -> Path:
    """The Parquet file with the samples of a scale."""
    return guidance_folder(run) / f"g-{repr(float(scale)).removesuffix('.0')}.parquet"


def read_guidance(run: RunFolder) -> GuidanceReport | None:
    """The report of the run's last guidance sweep, of whatever state of the run; None if there is none.

    Raises:
        UserError: the report is damaged or of another version.
    """
    return read_stored_report(GuidanceReport, guidance_folder(run) / REPORT_NAME, run, _again(run))


def read_scale(run: RunFolder, facts: ScaleFacts) -> pa.Table:
    """The samples of a finished scale, with `SCALE_SCHEMA`.

    Raises:
        UserError: the table is missing, damaged, or of another version.
    """
    return read_table(scale_file(run, facts.scale), SCALE_SCHEMA, run, facts.samples.number, _again(run))


def _again(run: RunFolder) -> str:
    return phf("evaluate", run.path, "--guidance-sweep", "SCALES")
