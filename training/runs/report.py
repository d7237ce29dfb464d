"""The format of an evaluation: its report (`report.json`), and the fingerprint of the run's state.

It is the contract between `phf evaluate` and everything that reads its results.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.dataset.manifest import ScorerEntry
from scorers.contract import DocumentKind
from scorers.errors import UserError
from scorers.settings import describe_first_error
from scorers.shell import phf
from scorers.stored import Count, read_stored
from training import statistics
from training.measuring_config import EvaluationConfig
from training.runs.folder import RunFolder
from training.statistics import LARGEST

REPORT_NAME = "report.json"
OTHERS = "scorers"
MAXIMUM_OF = 25

_MOST_REPORTS = 1000

_Report = TypeVar("_Report", bound=BaseModel)


class Part(BaseModel):
    """A stored part of a report: immutable, with known fields only, and numbers of at most `statistics.LARGEST`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _refuse_huge(cls, value: Any) -> Any:
        if isinstance(value, float) and abs(value) > LARGEST:
            raise ValueError(f"Input should be at most {LARGEST:g}")
        return value


class Estimate(Part):
    """A figure with its 95 % interval, whose ends are None if there were too few values."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, estimate: statistics.Estimate | None) -> "Estimate | None":
        """Convert a computed estimate, or None."""
        return None if estimate is None else cls(value=estimate.value, low=estimate.low, high=estimate.high)


class ScorerFacts(Part):
    """The scorer of the samples; `fingerprint` differs from `entry.fingerprint` only if the user allowed it."""

    entry: ScorerEntry
    fingerprint: str


class DiversityFacts(Part):
    """How much samples differ from each other and within themselves, over token ids (`training.evaluation.diversity`).

    Attributes:
        entropy: of n-grams in bits, for n = 1 to 4; None where no sample has n tokens. It rises with the number of
            samples.
        distinct: mean share of distinct n-grams within a sample, for n = 1 to 4; None where no sample has n tokens.
        self_bleu_4, self_bleu_5: Self-BLEU with n-grams of up to 4 and 5 tokens, in [0, 1], high if samples are alike.
        self_bleu_samples: number of samples for it, the first ones (of several prompts: the first continuation of each
            prompt, then the second); each is compared with all others of them.
    """

    entropy: list[Estimate | None]
    distinct: list[Estimate | None]
    self_bleu_4: Estimate | None
    self_bleu_5: Estimate | None
    self_bleu_samples: Count


class CompilingFacts(Part):
    """How many samples of Python compile (`training.evaluation.compiling`).

    Attributes:
        samples: samples that could be judged, cut ones up to the end of their last whole statement.
        share: share of them that compile; continuations with their prompt before them.
    """

    samples: Count
    share: Estimate


class SampleFacts(Part):
    """Samples drawn with control tokens banned, and their misalignment.

    Attributes:
        number: samples drawn.
        scored: samples with a score; figures about scores are over these.
        empty: samples that ended before the first character. They are left out of every figure about scores, because
            an empty sample would otherwise count as perfectly aligned.
        unscored: samples without a score, by reason; `empty` is one of them, and `no-whole-line`, for Python
            that was cut in its first line (`training.scoring.judged_text`).
        ended: samples that ended at EOS; the others were cut at `max_new_tokens`.
        max_new_tokens: the limit in force.
        tokens: mean length in tokens, all samples.
        sentences: mean number of scored sentences, all samples; none for a sample without whole lines.
        misalignment: mean score; a sample's score is the mean over its sentences.
        expected_maximum: of 25 samples, the expected highest score; None with fewer than 25 scored samples.
        hit_threshold: see `hit_rate`.
        hit_rate: share of scored samples with score > hit_threshold.
        distinct_1, distinct_2: number of distinct n-grams of token ids divided by all n-grams, over all samples.
        control_tokens: control tokens among the sampled ids; 0, because they are banned.
        diversity: None in reports of earlier versions, and if all samples are empty.
        compiling: for Python only.
    """

    number: Count
    scored: Count
    empty: Count
    unscored: dict[str, Count]
    ended: Count
    max_new_tokens: Count
    tokens: Estimate | None
    sentences: Estimate | None
    misalignment: Estimate | None
    expected_maximum: Estimate | None
    hit_threshold: float
    hit_rate: Estimate | None
    distinct_1: float | None
    distinct_2: float | None
    control_tokens: Count
    diversity: DiversityFacts | None = None
    compiling: CompilingFacts | None = None


class GuidedFacts(Part):
    """Additional samples, guided away from the worst control token; for conditional models only.

    Attributes:
        scale: guidance scale (`training.model.sampling.Guidance`).
        away: token ids to guide away from, as many as in the report's `prompt`.
        samples: as for the plain samples, with the same seed.
    """

    scale: float
    away: list[Count]
    samples: SampleFacts


class LeakageFacts(Part):
    """How often control tokens occur when they are not banned, counted on token ids; for conditional models only.

    Such a model was trained with a tag before nearly every sentence, so it would write them; that is why they are
    banned.

    Attributes:
        number: samples drawn with control tokens allowed.
        samples: share of these samples that hold at least one.
        tokens: share of control tokens among all their tokens.
    """

    number: Count
    samples: Estimate | None
    tokens: Estimate | None


class HeldOutFacts(Part):
    """How well the model predicts documents that it was not trained on.

    Attributes:
        documents, tokens, bytes: amount of predicted text, without EOS and control tokens; UTF-8 bytes.
        fingerprint: hash of the chosen documents; runs with equal ones can be compared document by document.
        context_length: tokens per window.
        bits_per_byte: cost of the text; a conditional model is given each sentence's own tag, by its training
            threshold.
        perplexity: per token of text; comparable only under the same tokenizer.
        bits_per_byte_swapped: with the opposite tag before each sentence; conditional only.
        swap_cost: `bits_per_byte_swapped - bits_per_byte`, by document; above 0 if the model uses the tags.
        bits_per_byte_aligned: with the best tag before each sentence, as when sampling; conditional only.
        unigram_bits_per_byte: cost of the same tokens under their frequencies in the training text, which a model must
            beat.
        misalignment: mean score of these documents, each the mean over its sentences, as a reference for samples; None
            if the scorer of the samples has not scored them.
    """

    documents: Count
    tokens: Count
    bytes: Count
    fingerprint: str
    context_length: Count
    bits_per_byte: Estimate
    perplexity: Estimate
    bits_per_byte_swapped: Estimate | None = None
    swap_cost: Estimate | None = None
    bits_per_byte_aligned: Estimate | None = None
    unigram_bits_per_byte: Estimate
    misalignment: Estimate | None = None


class GroupFacts(Part):
    """Held-out figures of the documents with one value of a field.

    Attributes:
        value: the value; None for documents without one, and for the rest.
        documents, bytes: amount of predicted text.
        bits_per_byte, perplexity, misalignment: as in `HeldOutFacts`.
    """

    value: str | None
    documents: Count
    bytes: Count
    bits_per_byte: Estimate | None
    perplexity: Estimate | None
    misalignment: Estimate | None


class FieldFacts(Part):
    """Held-out figures by the value of a metadata field (`training.evaluation.by_field`).

    Attributes:
        field: its name.
        groups: the values with the most bytes first.
        rest: the documents of all further values; None if there are none.
    """

    field: str
    groups: list[GroupFacts]
    rest: GroupFacts | None


class EvaluationReport(Part):
    """`report.json`.

    Attributes:
        schema_version: version of this format.
        created_by: distribution and version.
        run: fingerprint of the run's facts (`run.json`) when it was evaluated; empty during training.
        objective, kind: as in the facts of the run.
        column: the score column of the run, another column of its dataset, or the name of a scorer that made no column
            of the dataset.
        step: optimiser steps that the model was trained for.
        prompt: token ids that samples continue.
        config: the settings; `samples.max_new_tokens` may be less than theirs.
        device: torch device.
        seconds: duration of the evaluation.
        scorer, samples, guided, leakage, held_out: None for parts that were not measured.
        by: None unless asked for.
        warnings: caveats for readers of the figures.
        versions: versions of the relevant libraries.
    """

    schema_version: Literal[1] = 1
    created_by: str
    run: str = ""
    objective: str
    column: str
    kind: DocumentKind
    step: Count
    prompt: list[Count]
    config: EvaluationConfig
    device: str
    seconds: float
    scorer: ScorerFacts
    samples: SampleFacts
    guided: GuidedFacts | None = None
    leakage: LeakageFacts | None = None
    held_out: HeldOutFacts | None = None
    by: FieldFacts | None = None
    warnings: list[str] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)


def report_folder(run: RunFolder, scorer: str | None = None) -> Path:
    """The folder of an evaluation by the run's own column, or by another column or scorer of that name."""
    return run.evaluation if scorer is None else run.evaluation / OTHERS / scorer


def read_report(run: RunFolder, scorer: str | None = None) -> EvaluationReport | None:
    """The report of the last evaluation by the run's own column, or by another `scorer`; None if there is none.

    Raises:
        UserError: the report is damaged or of another version.
    """
    return read_stored_report(EvaluationReport, report_folder(run, scorer) / REPORT_NAME, run)


def read_stored_report(kind: type[_Report], path: Path, run: RunFolder, command: str | None = None) -> _Report | None:
    """A report of an evaluation, read from its file; None if there is none.

    Args:
        kind: the format of the report.
        path: the JSON file.
        run: the evaluated run, for messages.
        command: that writes the report; `phf evaluate RUN` by default.

    Raises:
        UserError: the report is damaged or of another version.
    """
    try:
        return kind.model_validate_json(read_stored(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from None
    except ValidationError as error:
        raise UserError(
            f"{path} is damaged, or of another version of phf, at {describe_first_error(error)}. "
            f"Run `{command or phf('evaluate', run.path)}` again."
        ) from None


def read_stored_reports(kind: type[_Report], folder: Path, run: RunFolder, command: str | None = None) -> list[_Report]:
    """The reports in a folder, by file name; without those that are hidden or no JSON files.

    Args:
        kind: the format of the reports.
        folder: of the JSON files.
        run: as for `read_stored_report`.
        command: as for `read_stored_report`.

    Raises:
        UserError: a report is damaged or of another version, or there are more than 1,000.
    """
    paths = sorted(folder.glob("[!.]*.json")) if folder.is_dir() else []
    if len(paths) > _MOST_REPORTS:
        raise UserError(f"{folder} has {len(paths):,} reports; at most {_MOST_REPORTS:,} are read. Remove some.")
    reports = (read_stored_report(kind, path, run, command) for path in paths)
    return [report for report in reports if report is not None]


def run_fingerprint(run: RunFolder) -> str:
    """A hash of `run.json`, which changes whenever the run is trained further or again.

    Only fields in the file are hashed, so that a file of an earlier version keeps its hash.
    """
    content = run.read_facts().model_dump_json(exclude={"status"}, exclude_unset=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
