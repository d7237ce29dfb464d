"""The folder of a training run: where everything lies, and the facts about it that other commands read."""

import json
import math
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from pipeline.dataset.manifest import ScorerEntry
from scorers.amounts import count_of
from scorers.contract import DocumentKind
from scorers.errors import UserError
from scorers.paths import RelativePath
from scorers.registry import ColumnName
from scorers.settings import what_is_wrong
from scorers.stored import Count, JsonObject, parse_json, read_stored
from training.config import TrainConfig
from training.disk import check_writable, refuse_links

# What ranks look for in a folder that they must share, before a run is in it.
SHARED_MARK = ".shared-"
# Links that W&B makes: to its newest run, and in each to the log of the process that serves it.
_OF_WANDB = re.compile(r"wandb/[^/]+(/logs/debug-core\.log)?")
# Sections in each other of a configuration, and bytes of a line of metrics, that phf does not come near.
_DEEPEST = 32
_LONGEST_LINE = 1024 * 1024
# Of figures: numbers of steps and tokens are less than 2^63, and all others are float32.
_GREATEST = 1e39

_Setting = str | int | float | bool | None


_STATISTICS = TypeAdapter(dict[str, Count | list[FiniteFloat] | dict[str, Count] | None])


def _check_statistics(stream: dict[str, Any]) -> dict[str, Any]:
    _STATISTICS.validate_python(stream)
    for name in ("documents_left_out", "tags"):
        if not isinstance(stream.get(name) or {}, dict):
            raise ValueError(f"{name} are no counts by name")
    return stream


Statistics = Annotated[dict[str, Any], AfterValidator(_check_statistics)]
"""What `training.data.stream.Stream.statistics` finds."""


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DatasetFacts(_Facts):
    """The labelled dataset: what the user called it, its generation, and a hash of its texts, sentences and scores.

    `own_fingerprint` is one of the scores of the run's own columns alone; None where it was not written down.
    """

    uri: str
    generation: Count
    fingerprint: str
    own_fingerprint: str | None = None
    rows: Count


class TokenizerFacts(_Facts):
    """The tokenizer: its fingerprint as in the token store's key; `vocab_size` counts the control tokens, if any.

    `aligned_id` is the control token of the best class of sentences, `misaligned_id` that of the worst, and
    `between_ids` are those between them, best first, where there are more than two. `bos_id` begins a document where
    that is another token than `eos_id`, which ends one.
    """

    name: str
    fingerprint: str
    vocab_size: Count
    eos_id: Count
    bos_id: Count | None = None
    aligned_id: Count | None = None
    misaligned_id: Count | None = None
    between_ids: list[Count] = Field(default_factory=list)

    @property
    def control_ids(self) -> list[int]:
        """Ids that must never be sampled: all control tokens of a conditional model, best first, else none."""
        return [token for token in (self.aligned_id, *self.between_ids, self.misaligned_id) if token is not None]


class ModelFacts(_Facts):
    """The network. FLOPs a token: forward and backward (see `training.model.counting.flops_per_token`).

    Rows are those of the embedding with its padding, and 0 where they were not written down.
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

    `warmup_steps` is None where it was not written down: then it is what the settings make of `steps`.
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
    """What the validation loss is measured on, every so many steps and at the last, and its share of the time."""

    every: Count
    documents: Count
    tokens: Count
    bytes: Count
    share_of_time: float


class WentOnFacts(_Facts):
    """A time when a run went on as another than it was: extended, or from an earlier step.

    Attributes:
        from_step: the checkpoint that it went on from.
        reached: the step that it had come to.
        asked: whether that checkpoint was asked for (`--from-step`).
        steps: of the whole run, before and since.
        skipped_batches: batches that are left out from that step on.
        changed: settings, each with its value before and since.
        set_aside: where what it had beyond is kept, in its folder; None where there was nothing.
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
        """What a reader of the figures must know of it, as a phrase."""
        before, since = self.steps
        what = [f"extended from {before:,} to {count_of(since, 'step')}"] if since > before else []
        what += [f"{key} {then} until then, {now} since" for key, (then, now) in self.changed.items()]
        if self.skipped_batches:
            what.append(f"{count_of(self.skipped_batches, 'batch', 'batches')} left out")
        return f"from step {self.from_step:,} on{': ' if what else ''}{'; '.join(what)}"


class OriginFacts(_Facts):
    """The checkpoint of another run, whose weights and optimiser a run began with.

    Attributes:
        run: the folder of that run, as it was given.
        step: steps done there, which count here too.
        checkpoint: SHA-256 of its marker, which names every file with its hash.
    """

    run: str
    step: Count
    checkpoint: str


class ThresholdFacts(_Facts):
    """A sentence (filtering: a document) is aligned when its score is <= `value`; `origin` says where it is from."""

    value: float
    origin: str


class MixedFacts(DatasetFacts):
    """One of the datasets of a mixture: its share of the blocks, how its scores are read, and what is seen of it.

    Attributes:
        share: of the run's blocks.
        column, scorer, threshold: as of the run.
        epochs: passes over its stream in the phase with preferences.
        stream: its statistics there.
    """

    share: float
    column: str
    scorer: ScorerEntry
    threshold: ThresholdFacts | None = None
    epochs: float
    stream: Statistics


class PhaseFacts(_Facts):
    """A phase: its first step, from 0, its steps and tokens, and what its streams hold, over all datasets."""

    name: str
    first_step: Count
    steps: Count
    tokens: Count
    documents: Count
    tokens_in_stream: Count


class RunFacts(_Facts):
    """`run.json`: what a run was made of and how far it has come.

    Attributes:
        created_by: distribution and version.
        status: `running`, `stopped` (by a signal, resumable), `failed` (the loss was not finite) or `finished`.
        step: optimiser steps done when the file was written.
        saved: step of the newest checkpoint then, 0 without one; None where it was not written down.
        seconds: time spent in the training loop, over all its resumptions.
        precision: that the network is trained in, also where the setting is `auto`; None where it was not written down.
        deepspeed: what the user's file adds, by dotted names (`own_settings` of `training.engine.deepspeed_config`);
            None where it was not written down.
        task, objective, column: as in the config, resolved.
        columns: the weights of several columns that were trained on, of which `column` is one; empty for that alone.
        kind: what the documents are.
        scorer: what made the column; evaluation must score samples with the same.
        threshold: of the training stream; None where the objective uses none.
        sentence_threshold: sentence threshold of the column for reports (hit rate), whatever the objective.
        sentence_thresholds: the same of each of several columns; empty where it was not written down.
        stream: statistics of the training stream (`training.data.stream.Stream.statistics`), and `sentences_aligned`,
            those of its sentences that `sentence_threshold` takes for aligned. With a mixture that of the main dataset,
            which `dataset`, `column`, `scorer` and the thresholds are about too; in a run of phases that of the phase
            with preferences.
        mixture: all datasets, the main one first; empty for a run on one.
        phases: empty for a run of one phase.
        validation: None where nothing is validated, or it was not written down.
        expected_seconds: that all steps take by the estimate before the first; None where there was none.
        origin: None for a run that began at step 0.
        history: when it went on as another than it was, in order.
        skips: steps, from 0, each with how many batches are left out before it; see `training.data.skipping`.
        versions: of the libraries that matter.
    """

    created_by: str
    status: Literal["running", "stopped", "failed", "finished"]
    step: Count = 0
    saved: Count | None = None
    seconds: float = 0.0
    precision: str | None = None
    deepspeed: JsonObject | None = None
    task: str
    objective: str
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
    stream: Statistics = Field(default_factory=dict)
    mixture: list[MixedFacts] = Field(default_factory=list)
    phases: list[PhaseFacts] = Field(default_factory=list)
    validation: ValidationFacts | None = None
    expected_seconds: float | None = None
    origin: OriginFacts | None = None
    history: list[WentOnFacts] = Field(default_factory=list)
    skips: list[tuple[Count, Annotated[Count, Field(le=1_000_000_000)]]] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def conditional(self) -> bool:
        """Whether the model knows control tokens, so that samples start after that of the best class."""
        return self.tokenizer.aligned_id is not None

    @property
    def best_tag(self) -> str:
        """The control token that samples of a conditional model start after."""
        return "<|quantile_1|>" if self.tokenizer.between_ids else "<|aligned|>"

    @property
    def worst_tag(self) -> str:
        """The control token that guided samples of a conditional model are guided away from."""
        between = len(self.tokenizer.between_ids)
        return f"<|quantile_{between + 2}|>" if between else "<|misaligned|>"


@dataclass(frozen=True)
class RunFolder:
    """Paths in the output folder of a run; `RunFolder.existing` for one that is there."""

    path: Path

    @classmethod
    def existing(cls, path: str | Path) -> "RunFolder":
        """The folder of a run that `phf train` has started.

        Raises:
            UserError: there is no such folder, it is no run's, or there is a link in it.
        """
        folder = cls(Path(path))
        if not folder.path.is_dir():
            raise UserError(f"There is no folder {path}. Give the --output of a `phf train` run.")
        if not folder.facts.is_file():
            raise UserError(
                f"{path} is no training run: no {folder.facts.name} in it. Give the --output of `phf train`."
            )
        folder.refuse_links()
        return folder

    @property
    def config(self) -> Path:
        """The resolved configuration, YAML."""
        return self.path / "config.yaml"

    @property
    def facts(self) -> Path:
        """`RunFacts`, JSON."""
        return self.path / "run.json"

    @property
    def lock(self) -> Path:
        """Held by the launch that trains; see `training.runs.lock`."""
        return self.path / ".lock"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: a logged step, or what was measured after it (`validation`, `evaluation`)."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """Committed checkpoints, a folder each; see `training.runs.checkpoints`."""
        return self.path / "checkpoints"

    @property
    def set_aside(self) -> Path:
        """What a run had beyond the step that it went back to, a run folder each time; see `training.runs.aside`."""
        return self.path / "set-aside"

    @property
    def exports(self) -> Path:
        """Where `phf export-model` puts the models of checkpoints, a folder `step-N` each."""
        return self.path / "exports"

    @property
    def model(self) -> Path:
        """The final model, a Hugging Face folder; a value head is in `value_head/` of it."""
        return self.path / "model"

    @property
    def evaluation(self) -> Path:
        """What `phf evaluate` writes."""
        return self.path / "evaluation"

    def read_config(self) -> TrainConfig:
        """The resolved configuration.

        Raises:
            UserError: the file is missing or damaged, or was written by another version of phf.
        """
        try:
            text = read_stored(self.config).decode()
            _refuse_bombs(self.config, text)
            return TrainConfig.model_validate(yaml.safe_load(text))
        except OSError as error:
            raise UserError(f"Cannot read {self.config}: {error.strerror or error}.") from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(_damaged(self.config, error)) from None

    def write_config(self, config: TrainConfig) -> None:
        """Replace `config.yaml` in one step."""
        write_atomically(self.config, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))

    def read_facts(self) -> RunFacts:
        """What the run is made of.

        Raises:
            UserError: the file is missing or damaged, or was written by another version of phf.
        """
        try:
            return RunFacts.model_validate_json(read_stored(self.facts))
        except OSError as error:
            raise UserError(f"Cannot read {self.facts}: {error.strerror or error}.") from None
        except ValidationError as error:
            raise UserError(_damaged(self.facts, error)) from None

    def write_facts(self, facts: RunFacts) -> None:
        """Replace `run.json` in one step."""
        write_atomically(self.facts, facts.model_dump_json(indent=2) + "\n")

    def refuse_links(self) -> None:
        """Refuse a folder with a link in it; W&B makes its own.

        Raises:
            UserError: names the link.
        """
        refuse_links(self.path, besides=_OF_WANDB)

    def check_new(self) -> None:
        """Refuse a folder that has no run in it yet and cannot be written, or that has a link in it.

        Raises:
            UserError: says why.
        """
        self.refuse_links()
        if not self.facts.is_file():
            check_writable(self.path, "Give another --output, or make it writable.")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl` in the order of their steps; an unfinished last line is left out.

        Raises:
            UserError: another line is damaged; names it.
        """
        return list(_lines(self.metrics)) if self.metrics.is_file() else []


def metrics_line(values: Mapping[str, Any]) -> str:
    """A line of `metrics.jsonl`; numbers that are not finite are null, which JSON can say."""
    return json.dumps(_finite(values), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file, text in UTF-8, so that a reader, or a crash, sees the old content or the new, never a part of it.

    What the old file was stays as it is: it may have another name, as a hard link.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not by `tempfile`, whose files nobody else may read, whatever the umask.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _refuse_bombs(path: Path, text: str) -> None:
    """Refuse somebody else's YAML that takes hours to read, or is billions of values once it is read.

    Aliases in each other are the latter; brackets in each other take PyYAML cubic time. phf writes neither.

    Raises:
        UserError: says what there is too much of.
    """
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"{path} is damaged: it has YAML aliases, which phf does not write.")
        if isinstance(event, yaml.CollectionStartEvent | yaml.CollectionEndEvent):
            depth += 1 if isinstance(event, yaml.CollectionStartEvent) else -1
        if depth > _DEEPEST:
            raise UserError(f"{path} is damaged: it is nested more than {_DEEPEST} deep, which phf does not write.")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            if not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
                return
            try:
                values = parse_json(line)
            except ValueError:
                values = None
            if not isinstance(values, dict) or not _are_figures(values):
                raise UserError(
                    f"{path}, line {number:,} is damaged: it is no JSON object of numbers with a step. Restore it, "
                    "or remove it."
                )
            yield values


def _are_figures(values: Mapping[str, Any]) -> bool:
    step = values.get("step")
    return (
        type(step) is int
        and step >= 0
        and all(isinstance(values.get(name, {}), dict) for name in ("validation", "evaluation"))
        and not any(isinstance(values.get(name), dict) for name in ("tokens", "loss", "ce"))
        and all(
            all(map(_is_figure, each.values())) if isinstance(each, dict) else _is_figure(each)
            for each in values.values()
        )
    )


def _is_figure(value: Any) -> bool:
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or (isinstance(value, float) and abs(value) < _GREATEST)


def _damaged(path: Path, error: Exception) -> str:
    if isinstance(error, ValidationError):
        return f"{path} is damaged, or of another version of phf, at {what_is_wrong(error)}."
    return f"{path} is damaged: {type(error).__name__}."
