"""The format of evaluated scenarios: what a scenario is, its report (`report.json`), and its tables.

Everything of a scenario lies in `evaluation/scenarios/NAME` of its run. Reports and tables hold no text: samples are
token ids, and prompts are numbered as in their file, or as documents of the token store.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from scorers.contract import DocumentKind
from scorers.shell import phf
from scorers.stored import Count
from training.runs.folder import RunFolder
from training.runs.report import REPORT_NAME, Estimate, Part, SampleFacts, ScorerFacts, read_stored_report
from training.runs.tables import read_table
from training.setting_types import Seed

SCENARIOS = "scenarios"
PROMPTS_NAME = "prompts.parquet"
HELD_OUT = "held-out"
NO_PROMPTS = "none"

ScenarioName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class Scenario(BaseModel):
    """Prompts, how a model continues them, and how the continuations are scored."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    name: ScenarioName
    """Folder of its results, and its name in tables."""
    prompts: str
    """`none`; `held-out` for the first sentences of held-out documents; or a file: JSONL, CSV, Parquet, or text with a
    prompt per line.
    """
    field: str | None = None
    """Field of the file's records with the prompt, such as `prompt.text`. By default the first of `prompt.text`,
    `prompt` and `text`.
    """
    max_prompts: int | None = Field(default=164, ge=1)
    """Most prompts, chosen by the seed; None for all. 164 prompts with 25 continuations are 4,100 samples."""
    continuations: int = Field(default=25, ge=1, le=10_000_000)
    """Samples per prompt. The paper's expected maximum needs 25."""
    sentences: int = Field(default=1, ge=1)
    """Held-out: number of sentences (in code, lines) of a document that are its prompt."""
    slices: Literal["document", "next-sentence", "none"] = "document"
    """Held-out: also report the most misaligned tenth of the prompts and the rest, by the mean score of the document or
    by that of the sentence after the prompt.
    """
    control: Literal["before", "after", "none"] = "before"
    """Conditional runs: where the best control token stands relative to the prompt."""
    score: Literal["continuation", "prompt-and-continuation"] = "continuation"
    """The text that is scored."""
    guidance: float = Field(default=1.0, ge=0, le=1e6)
    """Conditional runs: guide away from the worst control token; 1 for no guidance."""
    temperature: float = Field(default=0.7, ge=0.01)
    """Sampling temperature; the paper's."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Sample from the likeliest tokens with this total probability; the paper's."""
    min_new_tokens: int = Field(default=10, ge=0, le=1_000_000)
    """Tokens before which no sample ends."""
    max_new_tokens: int = Field(default=128, ge=1, le=1_000_000)
    """Most tokens per sample."""
    seed: Seed = 0
    """Seed of the samples, and of the choice of prompts."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens ({self.min_new_tokens}) is larger than max_new_tokens ({self.max_new_tokens})"
            )
        if self.control == "none" and self.guidance != 1:
            raise ValueError("guidance is between two control tokens: it needs control before or after")
        return self


class OverlapFacts(Part):
    """How many prompts share text with the documents that were not held out of training.

    Attributes:
        tokens: length of the shared run of tokens, 13.
        prompts: prompts with at least as many tokens; the others cannot overlap.
        overlapping: those of which any run of so many tokens occurs there.
        share: `overlapping / prompts`, with Wilson's interval; None without such prompts.
    """

    tokens: Count
    prompts: Count
    overlapping: Count
    share: Estimate | None


class PromptFacts(Part):
    """The prompts.

    Attributes:
        source: `none`, `held-out`, or the name of the file.
        number: the prompts used.
        found: prompts in the file, or held-out documents with text after their first sentences.
        too_long: held-out documents that were left out because their prompt leaves no room in the context.
        fingerprint: hash of the prompts' texts in order; runs with equal ones can be compared prompt by prompt.
        tokens: mean length.
        inside_token: prompts that may end inside a token, whose ends the model rewrites in all ways that fit.
        overlap: None without prompts.
    """

    source: str
    number: Count
    found: Count
    too_long: Count
    fingerprint: str
    tokens: float
    inside_token: Count
    overlap: OverlapFacts | None


class SliceFacts(Part):
    """The figures of some of the prompts."""

    name: str
    prompts: Count
    samples: SampleFacts


class ScenarioReport(Part):
    """`report.json` of a scenario.

    Every figure is a mean over prompts of the mean over a prompt's continuations, and its interval a bootstrap over
    prompts; without prompts, over samples. `expected_maximum` is that of 25 continuations of a prompt. The diversity is
    that of all samples together, with intervals over samples, and not measured for slices.

    Attributes:
        schema_version: version of this format.
        created_by: distribution and version.
        run: fingerprint of the run's facts (`run.json`).
        fingerprint: hash of all that the samples and scores depend on: scenario, run, prompts and scorer.
        scenario: the settings.
        objective, column, kind, step: as in `EvaluationReport`.
        control_ids: the control tokens that samples are conditioned on and guided away from; empty without.
        prompts: the prompts.
        samples: figures of all prompts.
        slices: figures of parts of the prompts.
        scorer: the scorer of the samples.
        device: torch device.
        sampler: name and address of the endpoint that drew the samples; None for phf itself.
        seconds: duration of the last attempt, which may have gone on after an interruption.
        samples_per_second, tokens_per_second: rates of the sampling; None if every piece was drawn before.
        warnings: caveats for readers of the figures.
        versions: versions of the relevant libraries.
    """

    schema_version: Literal[1] = 1
    created_by: str
    run: str
    fingerprint: str
    scenario: Scenario
    objective: str
    column: str
    kind: DocumentKind
    step: Count
    control_ids: list[Count]
    prompts: PromptFacts
    samples: SampleFacts
    slices: list[SliceFacts] = Field(default_factory=list)
    scorer: ScorerFacts
    device: str
    sampler: str | None = None
    seconds: float
    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    warnings: list[str] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)


# `ids` starts at the prompt's last safe boundary: its first `cover` tokens hold the end of the prompt, and the last of
# them may reach beyond it.
SCENARIO_SAMPLES_SCHEMA = pa.schema(
    [
        pa.field("prompt", pa.int32(), nullable=False),
        pa.field("continuation", pa.int32(), nullable=False),
        pa.field("slice", pa.string()),
        pa.field("ids", pa.list_(pa.int32()), nullable=False),
        pa.field("cover", pa.int32(), nullable=False),
        pa.field("new_tokens", pa.int32(), nullable=False),
        pa.field("ended", pa.bool_(), nullable=False),
        pa.field("sentences", pa.int32(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("reason", pa.string()),
    ]
)
# `record` is the line or row of the file, from 1, or the document of the token store.
PROMPTS_SCHEMA = pa.schema(
    [
        pa.field("prompt", pa.int32(), nullable=False),
        pa.field("record", pa.int64(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("slice", pa.string()),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("overlaps", pa.bool_(), nullable=False),
        pa.field("scored", pa.int32(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("expected_maximum", pa.float64()),
        pa.field("hits", pa.int32(), nullable=False),
    ]
)


def scenario_folder(run: RunFolder, name: str) -> Path:
    """The folder of a scenario's results."""
    return run.evaluation / SCENARIOS / name


def scenario_names(run: RunFolder) -> list[str]:
    """The names of the scenarios with a report, in alphabetical order."""
    folder = run.evaluation / SCENARIOS
    return sorted(each.name for each in folder.iterdir() if (each / REPORT_NAME).is_file()) if folder.is_dir() else []


def read_scenario(run: RunFolder, name: str) -> ScenarioReport | None:
    """The report of a scenario; None if there is none.

    Raises:
        UserError: the report is damaged or of another version.
    """
    return read_stored_report(ScenarioReport, scenario_folder(run, name) / REPORT_NAME, run, _again(run))


def read_prompts_table(run: RunFolder, report: ScenarioReport) -> pa.Table:
    """The figures by prompt of a scenario, with `PROMPTS_SCHEMA`.

    Raises:
        UserError: the table is missing, damaged, or of another version.
    """
    path = scenario_folder(run, report.scenario.name) / PROMPTS_NAME
    return read_table(path, PROMPTS_SCHEMA, run, report.prompts.number, _again(run))


def _again(run: RunFolder) -> str:
    return phf("evaluate", run.path, "--scenario", "SCENARIO")
