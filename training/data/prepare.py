"""From a configuration to batches: the one road that training, evaluation and `phf tokenize` share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.dataset import LabelledDataset
from scorers.errors import UserError
from training.config import DataConfig, TrainConfig
from training.data.builder import ensure_store
from training.data.mixture import MixtureSource
from training.data.options import StreamOptions
from training.data.order import Batches, BatchSource
from training.data.phases import Phase, PhasedSource, phase_at, plan_phases
from training.data.preference import check_preference, loss_mask, report_threshold, scale_of, tag
from training.data.sources import Source, open_sources, refuse_mixed_scorers
from training.data.store import TokenStore
from training.data.stream import Stream
from training.data.thresholds import ThresholdChoice, check_stream
from training.data.tokenizers import Tokenizer, ensure_tokenizer, load_tokenizer
from training.objectives import OBJECTIVES, LossMask, Objective, build
from training.presets import CONTEXT_LENGTH
from training.settings import fill_in

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PreparedDataset:
    """One of the datasets that a run trains on.

    Attributes:
        source: what it is, and its share of the run's blocks.
        store: its tokens; with several columns, also their combination.
        threshold: what the objective takes for aligned in it (filtering: over document means); None if it uses none.
        thresholds: of several columns, by column; empty where there is one column, or none are used.
        sentence_threshold: what reports take for an aligned sentence, by its `column`.
        streams: what is seen of it in each phase.
    """

    source: Source
    store: TokenStore
    threshold: ThresholdChoice | None
    thresholds: Mapping[str, ThresholdChoice]
    sentence_threshold: ThresholdChoice
    streams: tuple[Stream, ...]


@dataclass(frozen=True)
class PreparedData:
    """What a run trains on. With a mixture, what is said of one dataset is said of `data.dataset`, the main one.

    Attributes:
        config: with column, context length and the thresholds of objective and mixture filled in.
        dataset: the labelled dataset.
        tokenizer: the base tokenizer; it knows the ids of the control tokens.
        store: its tokens; with several columns, also their combination.
        stream: what the objective sees of them; in a run of phases, the phase with preferences.
        batches: everything in order.
        objective: the loss; see `objective_at` for steps without preferences.
        threshold: what the objective takes for aligned (filtering: over document means); None where it uses none.
        sentence_threshold: what reports take for an aligned sentence by `column`, whatever the objective.
        datasets: all of them, the main one first.
        phases: at least the one with preferences.
        warnings: what the user should know before the first step.
    """

    config: TrainConfig
    dataset: LabelledDataset
    tokenizer: Tokenizer
    store: TokenStore
    stream: Stream
    batches: Batches
    objective: Objective
    threshold: ThresholdChoice | None
    sentence_threshold: ThresholdChoice
    datasets: tuple[PreparedDataset, ...]
    phases: tuple[Phase, ...]
    warnings: tuple[str, ...] = ()

    @property
    def with_preferences(self) -> int:
        """Which of the phases has the preferences."""
        return [phase.name for phase in self.phases].index("preferences")

    @property
    def column(self) -> str:
        """The score column that reports are about; the stream's own may be a combination of it with others."""
        return self.config.data.column or self.config.task

    @property
    def control_ids(self) -> tuple[int, ...]:
        """The control tokens of the stream, that of the best class first; none without tags."""
        return self.stream.options.tag_ids

    def objective_at(self, step: int) -> Objective:
        """The loss of a step: plain before the preferences start. Where they end, it is the stream that has no tags."""
        phase = self.phases[phase_at(self.phases, step)]
        return self.objective.plain() if phase.name == "plain" else self.objective


def prepare(config: TrainConfig, progress: Progress | None = None) -> PreparedData:
    """Open the datasets, the tokenizer and the token stores (built where missing), and lay the streams over them.

    Call it before a process group starts: building a store may take long. Of several processes that need the same store
    one builds it, the others wait.

    Args:
        config: of `resolve_config`.
        progress: called with a stage (`tokenizer` or `tokens`), rows done and rows in all.

    Raises:
        UserError: whatever is wrong with a dataset, tokenizer, store, thresholds or objective; names the remedy.
    """
    config = fill_in(config)
    name = config.objective.name
    check_preference(config.data, config.objective)
    context_length = config.data.context_length or CONTEXT_LENGTH
    phases = plan_phases(config.objective, config.training.steps(context_length))
    sources = open_sources(config)
    warnings = refuse_mixed_scorers(sources, config)
    # With several columns, all of them are aligned where what is made of them is at most 0.
    threshold = 0.0 if config.data.columns else report_threshold(config, sources[0]).value
    objective = build(
        name,
        threshold=threshold,
        alpha=config.objective.alpha,
        beta=config.objective.beta,
        w_max=config.objective.w_max,
    )
    tokenizer = _tokenizer(config.data, [each.dataset for each in sources], progress)
    prepared: list[PreparedDataset] = []
    for source in sources:
        store = _store(source.dataset, tokenizer, source.store, progress)
        prepared.append(_lay(config, source, store, tokenizer, phases, prepared[0] if prepared else None))
    for each in prepared:
        _check(each, phases, name, is_main=each is prepared[0], named=len(prepared) > 1)
    main = prepared[0]
    stream = main.streams[[phase.name for phase in phases].index("preferences")]
    _refuse_other_classes(prepared, len(stream.options.tag_ids))
    mask = loss_mask(config.objective, stream, main.threshold)
    return PreparedData(
        config=_resolved(config, tokenizer, prepared, mask),
        dataset=main.source.dataset,
        tokenizer=tokenizer,
        store=main.store,
        stream=stream,
        batches=_batches(config, phases, prepared),
        objective=replace(objective, mask=mask),
        threshold=main.threshold,
        sentence_threshold=main.sentence_threshold,
        datasets=tuple(prepared),
        phases=phases,
        warnings=warnings,
    )


def tokenize(
    data: DataConfig, dataset: LabelledDataset, progress: Progress | None = None
) -> tuple[Tokenizer, TokenStore]:
    """The tokenizer and the token store that a configuration names, built where they are missing.

    Raises:
        UserError: see `load_tokenizer` and `ensure_store`.
    """
    tokenizer = _tokenizer(data, [dataset], progress)
    return tokenizer, _store(dataset, tokenizer, data.store, progress)


def _tokenizer(data: DataConfig, datasets: Sequence[LabelledDataset], progress: Progress | None) -> Tokenizer:
    if data.tokenizer is not None:
        return load_tokenizer(data.tokenizer)
    return ensure_tokenizer(datasets[0], data.vocab_size, _stage(progress, "tokenizer"), others=datasets[1:])


def _store(dataset: LabelledDataset, tokenizer: Tokenizer, place: str | None, progress: Progress | None) -> TokenStore:
    return ensure_store(dataset, tokenizer, Path(place) if place else None, _stage(progress, "tokens"))


def _stage(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(name, done, total)


def _lay(
    config: TrainConfig,
    source: Source,
    store: TokenStore,
    tokenizer: Tokenizer,
    phases: Sequence[Phase],
    main: PreparedDataset | None,
) -> PreparedDataset:
    """The streams of a dataset; `main` is the first, if this is another."""
    kind = OBJECTIVES[config.objective.name]
    scale = scale_of(config, source, store)
    for_reports = report_threshold(config, source)
    if kind.thresholds and main is not None:
        # One loss has one threshold, whatever the dataset.
        scale, for_reports = replace(scale, threshold=main.threshold), main.sentence_threshold
    threshold, streams = scale.threshold, []
    for phase in phases:
        options = StreamOptions(
            context_length=config.data.context_length or CONTEXT_LENGTH,
            eos_id=tokenizer.eos_id,
            held_out=config.data.held_out,
            held_out_seed=config.data.held_out_seed,
            seed=config.training.seed,
            part=phase.part,
        )
        if phase.name == "preferences":
            if kind.filters and threshold is not None:
                options = replace(options, filter_threshold=threshold.value)
            if kind.tags:
                options, threshold = tag(scale, options, config.objective, tokenizer)
        streams.append(Stream(scale.store, scale.column, options))
    return PreparedDataset(source, scale.store, threshold, scale.parts, for_reports, tuple(streams))


def _refuse_other_classes(prepared: Sequence[PreparedDataset], classes: int) -> None:
    for each in prepared:
        own = max(len(stream.options.tag_ids) for stream in each.streams)
        if own != classes:
            raise UserError(
                f"objective.quantiles divides the sentences of {prepared[0].source.uri} into {classes} classes, and "
                f"those of {each.source.uri} into {own}, as many of their scores are equal. Ask for fewer quantiles."
            )


def _check(prepared: PreparedDataset, phases: Sequence[Phase], objective: str, *, is_main: bool, named: bool) -> None:
    for phase, stream in zip(phases, prepared.streams, strict=True):
        heard = phase.name == "preferences"
        # A dataset that is aligned throughout is a part of a mixture like any other.
        threshold = prepared.threshold if heard and is_main else None
        try:
            check_stream(stream, objective if heard else "mle", threshold)
        except UserError as error:
            where = ", ".join([f"dataset {prepared.source.uri}"] * named + [f"phase {phase.name}"] * (len(phases) > 1))
            raise UserError(f"{where}: {error}" if where else str(error)) from None


def _batches(config: TrainConfig, phases: tuple[Phase, ...], prepared: Sequence[PreparedDataset]) -> Batches:
    size, seed = config.training.batch_size, config.training.seed
    names = tuple(each.source.uri for each in prepared)
    shares: tuple[Fraction, ...] = config.data.shares
    sources: list[Batches] = []
    for number in range(len(phases)):
        streams = tuple(each.streams[number] for each in prepared)
        alone = len(streams) == 1
        sources.append(
            BatchSource(streams[0], size, seed) if alone else MixtureSource(streams, names, shares, size, seed)
        )
    return sources[0] if len(phases) == 1 else PhasedSource(phases, tuple(sources), size)


def _resolved(
    config: TrainConfig, tokenizer: Tokenizer, prepared: Sequence[PreparedDataset], mask: LossMask | None
) -> TrainConfig:
    """With what the datasets decide filled in, so that it stays as it is when one of them is changed or gone.

    Bounds of quantiles follow from the dataset and are no setting.
    """
    main, *others = prepared
    changes: dict[str, Any] = {}
    if main.thresholds:
        changes["thresholds"] = {column: part.value for column, part in main.thresholds.items()}
    elif main.threshold is not None and main.threshold.origin != "quantiles":
        changes["threshold"] = main.threshold.value
    if mask is not None and mask.above is not None:
        changes["mask_above"] = mask.above
    config = config.model_copy(update={"objective": config.objective.model_copy(update=changes)})
    if not others:
        return config
    mixture = tuple(
        asked
        if each.threshold is None or each.threshold.origin == "quantiles"
        else asked.model_copy(update={"threshold": each.threshold.value})
        for asked, each in zip(config.data.mixture, others, strict=True)
    )
    # The tokenizer by its place: an evaluation reads the main dataset alone.
    data = config.data.model_copy(update={"mixture": mixture, "tokenizer": tokenizer.name})
    return config.model_copy(update={"data": data})
