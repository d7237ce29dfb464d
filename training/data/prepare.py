"""Prepare the data of a run: open datasets, tokenizer and stores, and build streams, objective and batches.

Training, evaluation and `phf tokenize` share it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.dataset import LabelledDataset
from pipeline.dataset.tags import document_limit
from scorers.errors import UserError
from training.config import DataConfig, ResolvedConfig
from training.data.batches import Batches, BatchSource
from training.data.build_store import ensure_store
from training.data.datasets import Source, document_kind, open_sources, refuse_mixed_scorers
from training.data.index import StreamOptions
from training.data.mixture import MixtureSource
from training.data.phases import Phase, PhasedSource, phase_at, plan_phases
from training.data.preference import (
    check_preference,
    choose_scale,
    hiding_limit,
    loss_mask,
    loss_threshold,
    report_threshold,
    tag,
)
from training.data.round_trips import RoundTrips, refuse_changes, round_trips
from training.data.store import TokenStore
from training.data.stored_credit import check_credit, credit_of
from training.data.tagged_stream import Stream
from training.data.thresholds import ThresholdChoice, check_stream
from training.data.token_spans import ensure_findings
from training.data.tokenizers import Tokenizer, ensure_tokenizer, load_tokenizer
from training.data.weighting import Solution, Weighting, solve_targets, worsened
from training.loss_mask import LossMask
from training.objectives import OBJECTIVES, Objective, build
from training.targets import parse_targets


@dataclass(frozen=True)
class PreparedDataset:
    """One of the datasets that a run trains on.

    Attributes:
        source: the dataset, and its share of the run's blocks.
        store: its tokens; with several columns, also their combination.
        threshold: of the objective (filtering: on document means); None if it uses none.
        thresholds: by column, if there are several; empty for a single column, or without thresholds.
        sentence_threshold: for reports, on sentence scores of its `column`.
        streams: one per phase.
    """

    source: Source
    store: TokenStore
    threshold: ThresholdChoice | None
    thresholds: Mapping[str, ThresholdChoice]
    sentence_threshold: ThresholdChoice
    streams: tuple[Stream, ...]


def build_streams(
    config: ResolvedConfig,
    source: Source,
    store: TokenStore,
    tokenizer: Tokenizer,
    phases: Sequence[Phase],
    main: PreparedDataset | None,
    progress: Callable[[int, int], None] | None,
    weighting: Weighting | None = None,
) -> PreparedDataset:
    """Build the streams of a dataset, one per phase.

    Args:
        config: with its columns filled in.
        source: the dataset.
        store: its tokens.
        tokenizer: of the store.
        phases: of the run.
        main: the first dataset; None if this is the first.
        progress: called with rows done and the total while locating a scorer's findings.
        weighting: weights of sentences that meet targets; None for an objective without.

    Raises:
        UserError: quantiles do not divide it, or its scorer cannot locate its findings.
    """
    kind = OBJECTIVES[config.objective.name]
    scale = choose_scale(config, source, store, weighting)
    for_reports = report_threshold(config, source)
    if kind.thresholds and main is not None and not config.data.columns:
        # One loss has one threshold for all datasets. With several columns it is 0 in each of them already.
        scale, for_reports = replace(scale, threshold=main.threshold), main.sentence_threshold
    findings, credit = None, credit_of(config.data.token_scores)
    if credit is not None:
        check_credit(store, credit, source.column)
    elif config.data.token_scores:
        kind_of_text = document_kind(source.manifest, source.column)
        findings = ensure_findings(store, source.dataset, tokenizer, source.column, kind_of_text, progress)
    threshold, streams = scale.threshold, []
    for phase in phases:
        options = replace(_plain_options(config, tokenizer, phase), findings=findings, credit=credit)
        if phase.name == "preferences":
            if kind.filters and threshold is not None:
                options = replace(options, filter_threshold=document_limit(threshold.value))
            if kind.tags:
                options, threshold = tag(scale, options, config.objective, tokenizer)
        streams.append(Stream(scale.store, scale.column, options))
    return PreparedDataset(source, scale.store, threshold, scale.parts, for_reports, tuple(streams))


def _plain_options(config: ResolvedConfig, tokenizer: Tokenizer, phase: Phase) -> StreamOptions:
    return StreamOptions(
        context_length=config.data.context_length,
        eos_id=tokenizer.eos_id,
        bos_id=None if tokenizer.bos_id == tokenizer.eos_id else tokenizer.bos_id,
        held_out=config.data.held_out,
        held_out_seed=config.data.held_out_seed,
        seed=config.training.seed,
        part=phase.part,
    )


def meet_targets(
    config: ResolvedConfig,
    sources: Sequence[Source],
    stores: Sequence[TokenStore],
    tokenizer: Tokenizer,
    phases: Sequence[Phase],
) -> Solution | None:
    """Find the weights that meet the targets in the phase with preferences; None without targets.

    Args:
        config: with its columns filled in.
        sources: the datasets.
        stores: their tokens.
        tokenizer: of the stores.
        phases: of the run.

    Raises:
        UserError: they cannot be met, or too few sentences would count.
    """
    targets = parse_targets(config.objective.targets)
    if not targets:
        return None
    phase = next(each for each in phases if each.name == "preferences")
    options, streams = _plain_options(config, tokenizer, phase), []
    for source, store in zip(sources, stores, strict=True):
        scale = choose_scale(config, source, store)
        streams.append(Stream(scale.store, scale.column, options))
    return solve_targets(targets, streams, config.data.shares, config.objective.min_effective_share)


def refuse_other_classes(prepared: Sequence[PreparedDataset], classes: int) -> None:
    """Refuse datasets that quantiles divide into a different number of classes than the first.

    Raises:
        UserError: names the dataset.
    """
    for each in prepared:
        own = max(stream.options.classes for stream in each.streams)
        if own != classes:
            raise UserError(
                f"objective.quantiles divides the sentences of {prepared[0].source.uri} into {classes} classes, and "
                f"those of {each.source.uri} into {own}, as many of their scores are equal. Set fewer quantiles."
            )


def check_streams(
    prepared: PreparedDataset, phases: Sequence[Phase], objective: str, *, is_main: bool, named: bool
) -> None:
    """Refuse empty streams, and a main dataset that its threshold does not divide.

    Args:
        prepared: the dataset.
        phases: of the run.
        objective: its name.
        is_main: whether its threshold must divide it.
        named: whether messages name the dataset.

    Raises:
        UserError: see `check_stream`.
    """
    for phase, stream in zip(phases, prepared.streams, strict=True):
        has_preferences = phase.name == "preferences"
        # A mixture may contain a dataset that is aligned throughout.
        threshold = prepared.threshold if has_preferences and is_main else None
        try:
            check_stream(stream, objective if has_preferences else "mle", threshold)
        except UserError as error:
            where = ", ".join([f"dataset {prepared.source.uri}"] * named + [f"phase {phase.name}"] * (len(phases) > 1))
            raise UserError(f"{where}: {error}" if where else str(error)) from None


Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PreparedData:
    """The data of a run. With a mixture, attributes of a single dataset are those of `data.dataset`, the main one.

    Attributes:
        config: with column, context length and the thresholds of objective and mixture filled in.
        dataset: the labelled dataset.
        tokenizer: the base tokenizer; it knows the ids of the control tokens.
        store: its tokens; with several columns, also their combination.
        stream: the stream of the phase with preferences.
        batches: of all datasets and phases.
        objective: the loss; see `objective_at` for steps without preferences.
        threshold: of the objective (filtering: on document means); None if it uses none.
        sentence_threshold: for reports, on sentence scores of `column`, whatever the objective.
        datasets: all of them, the main one first.
        phases: at least the one with preferences.
        warnings: to print before the first step.
        targets: the weights that meet the targets; None without targets.
    """

    config: ResolvedConfig
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
    targets: Solution | None = None

    @property
    def with_preferences(self) -> int:
        """The index of the phase with preferences."""
        return [phase.name for phase in self.phases].index("preferences")

    @property
    def column(self) -> str:
        """The score column of reports; the stream's own may combine it with others."""
        return self.config.data.column

    @property
    def control_ids(self) -> tuple[int, ...]:
        """The control tokens before sentences, best class first; empty without."""
        return self.stream.options.tag_ids

    @property
    def added_ids(self) -> tuple[int, ...]:
        """All tokens that the stream has besides those of the tokenizer: control tokens and `<|hidden|>`."""
        options = self.stream.options
        return (*options.tag_ids, *options.after_ids, *([] if options.hidden_id is None else [options.hidden_id]))

    @property
    def extended_tokenizer(self) -> Any:
        """The Hugging Face tokenizer with `added_ids`."""
        if not self.added_ids:
            return self.tokenizer.fast
        options = self.stream.options
        return self.tokenizer.with_control_tokens(
            len(options.tag_ids), len(options.after_ids), hidden=options.hidden_id is not None
        )

    def objective_at(self, step: int) -> Objective:
        """Return the loss of a step: plain before the preferences start; unchanged in a cooldown, which has no tags."""
        phase = self.phases[phase_at(self.phases, step)]
        return self.objective.plain() if phase.name == "plain" else self.objective


def prepare(config: ResolvedConfig, progress: Progress | None = None, *, compare_texts: bool = True) -> PreparedData:
    """Open the datasets, the tokenizer and the token stores (built if missing), and build the streams.

    Call it before a process group starts: building a store may take long. If several processes need the same store, one
    builds it and the others wait.

    Args:
        config: from `resolve_config`.
        progress: called with a stage (`tokenizer`, `tokens`, `round trips` or `findings`), rows done and the total.
        compare_texts: refuse a tokenizer that changes the texts, or warn about it; False for an evaluation.

    Raises:
        UserError: a problem with a dataset, tokenizer, store, threshold or objective; names the remedy.
    """
    name = config.objective.name
    check_preference(config.data, config.objective)
    phases = plan_phases(config.objective, config.training.steps(config.data.context_length))
    sources = open_sources(config)
    warnings = refuse_mixed_scorers(sources, config)
    objective = build(
        name,
        threshold=loss_threshold(config, sources[0]),
        alpha=config.objective.alpha,
        beta=config.objective.beta,
        w_max=config.objective.w_max,
    )
    tokenizer = _tokenizer(config.data, [each.dataset for each in sources], progress)
    stores: list[TokenStore] = []
    for source in sources:
        store = _store(source.dataset, tokenizer, source.store, progress)
        if compare_texts:
            trips = round_trips(store, source.dataset, tokenizer, _stage(progress, "round trips"))
            warnings += refuse_changes(trips, tokenizer, source.uri, allowed=config.data.allow_lossy_tokenizer)
        stores.append(store)
    targets = meet_targets(config, sources, stores, tokenizer, phases)
    weighting = None if targets is None else targets.weighting
    prepared: list[PreparedDataset] = []
    for source, store in zip(sources, stores, strict=True):
        first = prepared[0] if prepared else None
        stage = _stage(progress, "findings")
        try:
            prepared.append(build_streams(config, source, store, tokenizer, phases, first, stage, weighting))
        except UserError as error:
            if len(sources) == 1:
                raise
            raise type(error)(f"dataset {source.uri}: {error}") from None
    for each in prepared:
        check_streams(each, phases, name, is_main=each is prepared[0], named=len(prepared) > 1)
    main = prepared[0]
    stream = main.streams[[phase.name for phase in phases].index("preferences")]
    refuse_other_classes(prepared, stream.options.classes)
    hide_above = hiding_limit(config.objective, stream, main.threshold)
    if hide_above is not None:
        hidden_id = tokenizer.hidden_id(len(stream.options.tag_ids), len(stream.options.after_ids))
        prepared = [_hide(each, phases, hide_above, hidden_id) for each in prepared]
        main = prepared[0]
        stream = main.streams[[phase.name for phase in phases].index("preferences")]
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
        warnings=warnings + (() if targets is None else worsened(targets)),
        targets=targets,
    )


def _hide(prepared: PreparedDataset, phases: Sequence[Phase], above: float, hidden_id: int) -> PreparedDataset:
    """Hide tokens with a score above a limit in all phases but the plain one."""
    streams = tuple(
        stream
        if phase.name == "plain"
        else Stream(stream.store, stream.column, replace(stream.options, hide_above=above, hidden_id=hidden_id))
        for phase, stream in zip(phases, prepared.streams, strict=True)
    )
    return replace(prepared, streams=streams)


def tokenize(
    data: DataConfig, datasets: Sequence[LabelledDataset], progress: Progress | None = None
) -> tuple[Tokenizer, list[tuple[TokenStore, RoundTrips]]]:
    """Open the tokenizer and the token stores that a configuration names, built if missing, and count round trips.

    Args:
        data: names the tokenizer, and the store of the first dataset.
        datasets: one, or the main one of a mixture and the others.
        progress: as for `prepare`.

    Raises:
        UserError: see `load_tokenizer` and `ensure_store`.
    """
    tokenizer = _tokenizer(data, datasets, progress)
    places = [data.store, *(None for _ in datasets[1:])]
    stores = [_store(dataset, tokenizer, place, progress) for dataset, place in zip(datasets, places, strict=True)]
    trips = [
        round_trips(store, dataset, tokenizer, _stage(progress, "round trips"))
        for store, dataset in zip(stores, datasets, strict=True)
    ]
    return tokenizer, list(zip(stores, trips, strict=True))


def _tokenizer(data: DataConfig, datasets: Sequence[LabelledDataset], progress: Progress | None) -> Tokenizer:
    if data.tokenizer is not None:
        return load_tokenizer(data.tokenizer)
    return ensure_tokenizer(datasets[0], data.vocab_size, _stage(progress, "tokenizer"), others=datasets[1:])


def _store(dataset: LabelledDataset, tokenizer: Tokenizer, place: str | None, progress: Progress | None) -> TokenStore:
    return ensure_store(dataset, tokenizer, Path(place) if place else None, _stage(progress, "tokens"))


def _stage(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(name, done, total)


def _batches(config: ResolvedConfig, phases: tuple[Phase, ...], prepared: Sequence[PreparedDataset]) -> Batches:
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
    config: ResolvedConfig, tokenizer: Tokenizer, prepared: Sequence[PreparedDataset], mask: LossMask | None
) -> ResolvedConfig:
    """Fill in what the datasets decide, so that it stays fixed when a dataset changes or disappears.

    Quantile bounds are not settings: they follow from the dataset.
    """
    main, *others = prepared
    changes = _own_thresholds(main)
    if mask is not None and mask.above is not None:
        changes["mask_above"] = mask.above
    hidden = [stream.options.hide_above for stream in main.streams if stream.options.hide_above is not None]
    if hidden:
        changes["hide_above"] = hidden[0]
    config = config.model_copy(update={"objective": config.objective.model_copy(update=changes)})
    mixture = tuple(
        entry.model_copy(update=_own_thresholds(each)) for entry, each in zip(config.data.mixture, others, strict=True)
    )
    # Record the tokenizer's path: an evaluation opens the main dataset alone, which may have grown by then.
    data = config.data.model_copy(update={"mixture": mixture, "tokenizer": tokenizer.name})
    return config.model_copy(update={"data": data})


def _own_thresholds(dataset: PreparedDataset) -> dict[str, Any]:
    """Return the threshold or thresholds chosen for a dataset, by the names of their settings."""
    if dataset.thresholds:
        return {"thresholds": {column: part.value for column, part in dataset.thresholds.items()}}
    if dataset.threshold is None or dataset.threshold.origin == "quantiles":
        return {}
    return {"threshold": dataset.threshold.value}
