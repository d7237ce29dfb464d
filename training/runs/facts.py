"""The facts of a run (`run.json`), which other commands read: what it is trained on and with, and its progress."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter

from pipeline.dataset.manifest import ScorerEntry
from scorers.amounts import format_count
from scorers.contract import DocumentKind
from scorers.paths import RelativePath
from scorers.registry import ColumnName
from scorers.stored import Count, JsonObject
from training.config import ObjectiveName

_Setting = str | int | float | bool | None
_STATISTICS = TypeAdapter(dict[str, Count | list[FiniteFloat] | dict[str, Count] | None])


def _check_statistics(stream: dict[str, Any]) -> dict[str, Any]:
    _STATISTICS.validate_python(stream)
    for name in ("documents_left_out", "tags"):
        if not isinstance(stream.get(name) or {}, dict):
            raise ValueError(f"{name} must be counts by name")
    return stream


Statistics = Annotated[dict[str, Any], AfterValidator(_check_statistics)]
"""The statistics of `training.data.tagged_stream.Stream.statistics`."""


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DatasetFacts(_Facts):
    """The labelled dataset: its URI as given, its generation, and a hash of its texts, sentences and scores.

    `own_fingerprint` covers only the scores of the run's own columns; None if it was not recorded. `purged` counts the
    documents that `phf purge` had removed.
    """

    uri: str
    generation: Count
    fingerprint: str
    own_fingerprint: str | None = None
    rows: Count
    purged: Count = Field(default=0, exclude_if=lambda count: not count)


class TokenizerFacts(_Facts):
    """The tokenizer: its fingerprint as in the token store's key; `vocab_size` counts the control tokens, if any.

    `aligned_id` is the control token of the best class of sentences, `misaligned_id` that of the worst, and
    `between_ids` are those in between, best first, if there are more than two. `after_ids` are the control
    tokens after sentences, which the model predicts and never writes, best first. `hidden_id` stands in place of tokens
    that the model must not read; None if nothing was hidden. `eos_id` ends a document, and begins one
    unless there is a `bos_id`.
    """

    name: str
    fingerprint: str
    vocab_size: Count
    eos_id: Count
    bos_id: Count | None = None
    aligned_id: Count | None = None
    misaligned_id: Count | None = None
    between_ids: list[Count] = Field(default_factory=list)
    after_ids: list[Count] = Field(default_factory=list)
    hidden_id: Count | None = None

    @property
    def begins_with(self) -> int:
        """The token that begins a document."""
        return self.eos_id if self.bos_id is None else self.bos_id

    @property
    def control_ids(self) -> list[int]:
        """All control tokens of a conditional model, best first, which must never be sampled; else empty."""
        return [token for token in (self.aligned_id, *self.between_ids, self.misaligned_id) if token is not None]

    @property
    def added_ids(self) -> list[int]:
        """All tokens that are no text: control tokens and `<|hidden|>`."""
        return [*self.control_ids, *self.after_ids, *([] if self.hidden_id is None else [self.hidden_id])]


class ModelFacts(_Facts):
    """The network. `flops_per_token` is forward and backward (see `training.model.counting.flops_per_token`).

    `rows` are those of the embedding with padding; 0 if they were not recorded.
    """

    name: str
    parameters: Count
    parameters_embedding: Count
    flops_per_token: float
    context_length: Count
    value_head: bool = False
    rows: Count = 0


class HorizonFacts(_Facts):
    """The arithmetic of the run: `batch_size == micro_batch_size * accumulation * ranks` blocks a step.

    `warmup_steps` is None if it was not recorded: then it follows from the settings and `steps`.
    """

    steps: Count
    tokens: Count
    batch_size: Count
    micro_batch_size: Count
    accumulation: Count
    ranks: Count
    epochs: float
    tokens_per_parameter: float
    warmup_steps: Count | None = None


class ValidationFacts(_Facts):
    """The text of the validation loss, the interval in steps, and its share of the time of the run."""

    every: Count
    documents: Count
    tokens: Count
    bytes: Count
    share_of_time: float


class ResumptionFacts(_Facts):
    """A resumption that changed a run: it was extended, or went back to an earlier step.

    Attributes:
        from_step: step of the checkpoint that it resumed from.
        reached: the step that it had reached before.
        asked: whether the user named that checkpoint (`--from-step`).
        steps: number of steps of the whole run, before and after.
        skipped_batches: batches left out from that step on.
        changed: changed settings, each with its value before and after.
        set_aside: folder of what it had beyond the step, relative to its own; None if there was nothing.
    """

    from_step: Count
    reached: Count
    asked: bool
    steps: tuple[Count, Count]
    skipped_batches: Count = 0
    changed: dict[str, tuple[_Setting, _Setting]] = Field(default_factory=dict)
    set_aside: RelativePath | None = None

    @property
    def description(self) -> str:
        """A phrase that describes it to readers of the figures."""
        before, since = self.steps
        what = [f"extended from {before:,} to {format_count(since, 'step')}"] if since > before else []
        what += [f"{key} {then} until then, {now} since" for key, (then, now) in self.changed.items()]
        if self.skipped_batches:
            what.append(f"{format_count(self.skipped_batches, 'batch', 'batches')} left out")
        return f"from step {self.from_step:,} on{': ' if what else ''}{'; '.join(what)}"


class OriginFacts(_Facts):
    """The checkpoint of another run that a run started from, with its weights and optimiser.

    Attributes:
        run: folder of that run, as given.
        step: steps done there, which count here too.
        checkpoint: SHA-256 of its marker, which lists every file with its hash.
    """

    run: str
    step: Count
    checkpoint: str


class MatchingFacts(_Facts):
    """How `phf match` made a run from another one, by targets for its samples.

    Attributes:
        run: folder of the other run, as given.
        fingerprint: hash of the facts of that run.
        settings: those of `phf match` that decide the outcome, besides those of the training.
        scorers: fingerprints of the constraints' scorers by name.
        constraints: the targets, as users write them.
        lambdas: one for each; 0 where the target is pointwise.
        log_z: log of the normaliser of the target by samples of the other run.
        before: the value of each constraint's feature in samples of the other run.
        samples: the number of these samples.
        outside: how many of them are outside of the target.
    """

    run: str
    fingerprint: str
    settings: JsonObject
    scorers: dict[str, str]
    constraints: list[str]
    lambdas: list[float]
    log_z: float
    before: list[float]
    samples: Count
    outside: Count


class ThresholdFacts(_Facts):
    """A sentence (filtering: a document) is aligned if its score is <= `value`; `origin` says where that comes from."""

    value: float
    origin: str


class MixedFacts(DatasetFacts):
    """One of the datasets of a mixture.

    Attributes:
        share: share of the run's blocks.
        column, scorer, threshold: as for the run.
        epochs: passes over its stream in the phase with preferences.
        stream: statistics of that stream.
        credit: as for the run.
    """

    share: float
    column: str
    scorer: ScorerEntry
    threshold: ThresholdFacts | None = None
    epochs: float
    stream: Statistics
    credit: str | None = Field(default=None, exclude_if=lambda credit: credit is None)


class PhaseFacts(_Facts):
    """A phase: its first step, counted from 0, its steps and tokens, and the size of its streams over all datasets."""

    name: str
    first_step: Count
    steps: Count
    tokens: Count
    documents: Count
    tokens_in_stream: Count


class MomentFacts(_Facts):
    """A target of the objective `target`: the feature, its moment as requested and in the unweighted stream.

    `weight` is its lambda: the weight of a sentence is exp of the sum of weight times feature, but for a constant; None
    for a filter, which leaves sentences out.
    """

    feature: str
    target: float
    before: float
    weight: float | None


class TargetFacts(_Facts):
    """The weights that meet the targets of the objective `target`.

    Attributes:
        moments: the targets.
        sentences: in the streams of all datasets.
        effective_sentences: as many equally weighted sentences would have the same variance.
        least_weight, greatest_weight: of a sentence that is not left out; the mean over tokens is 1.
    """

    moments: list[MomentFacts]
    sentences: Count
    effective_sentences: float
    least_weight: float
    greatest_weight: float

    @property
    def effective_share(self) -> float:
        """The effective share of the sentences."""
        return self.effective_sentences / max(1, self.sentences)


class RunFacts(_Facts):
    """`run.json`: what a run is trained on and with, and its progress.

    Attributes:
        created_by: distribution and version.
        status: `running`, `stopped` (by a signal, resumable), `failed` (the loss was not finite) or `finished`.
        step: optimiser steps done when the file was written.
        saved: step of the newest checkpoint then, 0 without one; None if it was not recorded.
        seconds: time spent in the training loop, over all resumptions.
        precision: precision of the training, resolved if the setting is `auto`; None if it was not recorded.
        deepspeed: settings of the user's DeepSpeed file, by dotted names (`own_settings` of
            `training.engine.deepspeed_config`); None if they were not recorded.
        task, objective, column: as in the config, resolved.
        columns: the weights of several columns, of which `column` is one; empty for a run on one column.
        kind: kind of the documents.
        scorer: scorer of the column; evaluation must score samples with the same.
        threshold: threshold of the training stream; None if the objective uses none.
        sentence_threshold: sentence threshold of the column for reports (hit rate), whatever the objective.
        sentence_thresholds: the same for each of several columns; empty if it was not recorded.
        targets: the weights of sentences; None for another objective.
        stream: statistics of the training stream (`training.data.tagged_stream.Stream.statistics`), and
            `sentences_aligned`, the number of its sentences within `sentence_threshold`. With a mixture, `stream`,
            `dataset`, `column`, `scorer` and the thresholds are those of the main dataset; with phases, `stream` is
            that of the phase with preferences.
        credit: fingerprint of the token scores of `phf credit` that its tokens carry; None without.
        mixture: all datasets, the main one first; empty for a run on one.
        phases: empty for a run of one phase.
        validation: None if nothing is validated, or it was not recorded.
        expected_seconds: duration of all steps as estimated before the first; None without an estimate.
        origin: None for a run that started at step 0.
        matching: None unless `phf match` made the run.
        history: resumptions that changed the run, in order.
        skips: steps, counted from 0, each with the number of batches left out before it; see `training.data.skipping`.
        versions: versions of the relevant libraries.
    """

    created_by: str
    status: Literal["running", "stopped", "failed", "finished"]
    step: Count = 0
    saved: Count | None = None
    seconds: float = 0.0
    precision: str | None = None
    deepspeed: JsonObject | None = None
    task: str
    objective: ObjectiveName
    column: ColumnName
    columns: dict[ColumnName, float] = Field(default_factory=dict)
    kind: DocumentKind
    scorer: ScorerEntry
    threshold: ThresholdFacts | None = None
    sentence_threshold: ThresholdFacts | None = None
    sentence_thresholds: dict[str, ThresholdFacts] = Field(default_factory=dict)
    dataset: DatasetFacts
    tokenizer: TokenizerFacts
    model: ModelFacts
    horizon: HorizonFacts
    targets: TargetFacts | None = None
    stream: Statistics = Field(default_factory=dict)
    credit: str | None = Field(default=None, exclude_if=lambda credit: credit is None)
    mixture: list[MixedFacts] = Field(default_factory=list)
    phases: list[PhaseFacts] = Field(default_factory=list)
    validation: ValidationFacts | None = None
    expected_seconds: float | None = None
    origin: OriginFacts | None = None
    matching: MatchingFacts | None = Field(default=None, exclude_if=lambda matching: matching is None)
    history: list[ResumptionFacts] = Field(default_factory=list)
    skips: list[tuple[Count, Annotated[Count, Field(le=1_000_000_000)]]] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def conditional(self) -> bool:
        """Whether the model has control tokens, so that samples start after that of the best class."""
        return self.tokenizer.aligned_id is not None

    @property
    def best_tag(self) -> str:
        """The control token after which samples of a conditional model start."""
        return "<|quantile_1|>" if self.tokenizer.between_ids else "<|aligned|>"

    @property
    def worst_tag(self) -> str:
        """The control token from which samples of a conditional model can be guided away."""
        between = len(self.tokenizer.between_ids)
        return f"<|quantile_{between + 2}|>" if between else "<|misaligned|>"
