"""From a configuration to batches: the one road that training, evaluation and `phf tokenize` share."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.dataset import LabelledDataset, open_dataset
from training.config import DataConfig, ObjectiveConfig, TrainConfig
from training.data.builder import ensure_store
from training.data.findings import ensure_findings
from training.data.kinds import document_kind
from training.data.options import StreamOptions
from training.data.order import BatchSource
from training.data.preference import Scale, check_preference, loss_mask, report_threshold, scale_of, tag
from training.data.store import TokenStore
from training.data.stream import Stream
from training.data.thresholds import ThresholdChoice, check_stream
from training.data.tokenizers import Tokenizer, ensure_tokenizer, load_tokenizer
from training.loss_mask import LossMask
from training.objectives import OBJECTIVES, Objective, build
from training.presets import CONTEXT_LENGTH
from training.settings import fill_in

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PreparedData:
    """What a run trains on.

    Attributes:
        config: with column, context length and the objective's thresholds filled in.
        dataset: the labelled dataset.
        tokenizer: the base tokenizer; it knows the ids of the control tokens.
        store: its tokens; with several columns, also their combination.
        stream: what the objective sees of them.
        batches: the stream in order.
        objective: the loss.
        threshold: what the objective takes for aligned (filtering: over document means); None where it uses none.
        sentence_threshold: what reports take for an aligned sentence by `column`, whatever the objective.
    """

    config: TrainConfig
    dataset: LabelledDataset
    tokenizer: Tokenizer
    store: TokenStore
    stream: Stream
    batches: BatchSource
    objective: Objective
    threshold: ThresholdChoice | None
    sentence_threshold: ThresholdChoice

    @property
    def column(self) -> str:
        """The score column that reports are about; the stream's own may be a combination of it with others."""
        return self.config.data.column or self.config.task

    @property
    def control_ids(self) -> tuple[int, ...]:
        """The control tokens of the stream, that of the best class first; none without tags."""
        return self.stream.options.tag_ids


def prepare(config: TrainConfig, progress: Progress | None = None) -> PreparedData:
    """Open the dataset, the tokenizer and the token store (built where missing), and lay the stream over them.

    Call it before a process group starts: building a store may take long. Of several processes that need the same store
    one builds it, the others wait.

    Args:
        config: of `resolve_config`.
        progress: called with a stage (`tokenizer` or `tokens`), rows done and rows in all.

    Raises:
        UserError: whatever is wrong with the dataset, tokenizer, store, thresholds or objective; names the remedy.
    """
    config = fill_in(config)
    name = config.objective.name
    kind = OBJECTIVES[name]
    check_preference(config.data, config.objective)
    dataset = open_dataset(config.data.dataset)
    for column in config.data.columns or [config.data.column or config.task]:
        dataset.require_column(column)
    for_reports = report_threshold(config, dataset.manifest)
    # With several columns, all of them are aligned where what is made of them is at most 0.
    objective = _objective(config.objective, 0.0 if config.data.columns else for_reports.value)

    tokenizer, store = tokenize(config.data, dataset, progress)
    scale = scale_of(config, dataset.manifest, store)
    threshold = scale.threshold
    options = StreamOptions(
        context_length=config.data.context_length or CONTEXT_LENGTH,
        eos_id=tokenizer.eos_id,
        held_out=config.data.held_out,
        held_out_seed=config.data.held_out_seed,
        filter_threshold=threshold.value if threshold is not None and kind.filters else None,
        seed=config.training.seed,
    )
    if config.data.token_scores:
        options = replace(options, findings=_findings(config, dataset, tokenizer, store, progress))
    if kind.tags:
        options, threshold = tag(scale, options, config.objective, tokenizer)
    stream = Stream(scale.store, scale.column, options)
    check_stream(stream, name, threshold)
    mask = loss_mask(config.objective, stream, threshold)
    return PreparedData(
        config=_resolved(config, threshold, scale, mask),
        dataset=dataset,
        tokenizer=tokenizer,
        store=scale.store,
        stream=stream,
        batches=BatchSource(stream, config.training.batch_size, config.training.seed),
        objective=replace(objective, mask=mask),
        threshold=threshold,
        sentence_threshold=for_reports,
    )


def tokenize(
    data: DataConfig, dataset: LabelledDataset, progress: Progress | None = None
) -> tuple[Tokenizer, TokenStore]:
    """The tokenizer and the token store that a configuration names, built where they are missing.

    Raises:
        UserError: see `load_tokenizer` and `ensure_store`.
    """

    def report(stage: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(stage, done, total)

    if data.tokenizer is None:
        tokenizer = ensure_tokenizer(dataset, data.vocab_size, report("tokenizer"))
    else:
        tokenizer = load_tokenizer(data.tokenizer)
    store = ensure_store(dataset, tokenizer, Path(data.store) if data.store else None, report("tokens"))
    return tokenizer, store


def _objective(config: ObjectiveConfig, threshold: float) -> Objective:
    return build(config.name, threshold=threshold, alpha=config.alpha, beta=config.beta, w_max=config.w_max)


def _findings(
    config: TrainConfig, dataset: LabelledDataset, tokenizer: Tokenizer, store: TokenStore, progress: Progress | None
) -> str:
    column = config.data.column or config.task
    tell = None if progress is None else lambda done, total: progress("findings", done, total)
    return ensure_findings(store, dataset, tokenizer, column, document_kind(dataset.manifest, column), tell)


def _resolved(
    config: TrainConfig, threshold: ThresholdChoice | None, scale: Scale, mask: LossMask | None
) -> TrainConfig:
    """With the numbers that the dataset decided; bounds of quantiles follow from it and are no setting."""
    changes: dict[str, Any] = {}
    if scale.parts:
        changes["thresholds"] = {column: part.value for column, part in scale.parts.items()}
    elif threshold is not None and threshold.origin != "quantiles":
        changes["threshold"] = threshold.value
    if mask is not None and mask.above is not None:
        changes["mask_above"] = mask.above
    return config.model_copy(update={"objective": config.objective.model_copy(update=changes)})
