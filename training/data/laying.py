"""The streams that a run reads of one dataset, one a phase, and whether they can be trained on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from scorers.errors import UserError
from training.config import TrainConfig
from training.data.findings import ensure_findings
from training.data.kinds import document_kind
from training.data.options import StreamOptions
from training.data.phases import Phase
from training.data.preference import report_threshold, scale_of, tag
from training.data.sources import Source
from training.data.store import TokenStore
from training.data.stream import Stream
from training.data.thresholds import ThresholdChoice, check_stream, document_limit
from training.data.tokenizers import Tokenizer
from training.objectives import OBJECTIVES
from training.presets import CONTEXT_LENGTH


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


def lay_streams(
    config: TrainConfig,
    source: Source,
    store: TokenStore,
    tokenizer: Tokenizer,
    phases: Sequence[Phase],
    main: PreparedDataset | None,
    progress: Callable[[int, int], None] | None,
) -> PreparedDataset:
    """The streams of a dataset, one a phase.

    Args:
        config: with its columns filled in.
        source: the dataset.
        store: its tokens.
        tokenizer: that made them.
        phases: of the run.
        main: the first dataset, if this is another.
        progress: called with rows done and in all, where a scorer's findings are looked for.

    Raises:
        UserError: quantiles do not divide it, or its scorer cannot say where it found what.
    """
    kind = OBJECTIVES[config.objective.name]
    scale = scale_of(config, source, store)
    for_reports = report_threshold(config, source)
    if kind.thresholds and main is not None and not config.data.columns:
        # One loss has one threshold, whatever the dataset. With several columns it is 0, above which is bad in each.
        scale, for_reports = replace(scale, threshold=main.threshold), main.sentence_threshold
    findings = None
    if config.data.token_scores:
        kind_of_text = document_kind(source.manifest, source.column)
        findings = ensure_findings(store, source.dataset, tokenizer, source.column, kind_of_text, progress)
    threshold, streams = scale.threshold, []
    for phase in phases:
        options = StreamOptions(
            context_length=config.data.context_length or CONTEXT_LENGTH,
            eos_id=tokenizer.eos_id,
            bos_id=None if tokenizer.bos_id == tokenizer.eos_id else tokenizer.bos_id,
            held_out=config.data.held_out,
            held_out_seed=config.data.held_out_seed,
            seed=config.training.seed,
            part=phase.part,
            findings=findings,
        )
        if phase.name == "preferences":
            if kind.filters and threshold is not None:
                options = replace(options, filter_threshold=document_limit(threshold.value))
            if kind.tags:
                options, threshold = tag(scale, options, config.objective, tokenizer)
        streams.append(Stream(scale.store, scale.column, options))
    return PreparedDataset(source, scale.store, threshold, scale.parts, for_reports, tuple(streams))


def refuse_other_classes(prepared: Sequence[PreparedDataset], classes: int) -> None:
    """Refuse datasets that quantiles divide into other numbers of classes than the first.

    Raises:
        UserError: names it.
    """
    for each in prepared:
        own = max(len(stream.options.tag_ids) for stream in each.streams)
        if own != classes:
            raise UserError(
                f"objective.quantiles divides the sentences of {prepared[0].source.uri} into {classes} classes, and "
                f"those of {each.source.uri} into {own}, as many of their scores are equal. Ask for fewer quantiles."
            )


def check_streams(
    prepared: PreparedDataset, phases: Sequence[Phase], objective: str, *, is_main: bool, named: bool
) -> None:
    """Refuse streams with nothing to train on, or nothing to tell apart.

    Args:
        prepared: whose.
        phases: of the run.
        objective: its name.
        is_main: whether its threshold must divide it.
        named: whether the message shall name the dataset.

    Raises:
        UserError: see `check_stream`.
    """
    for phase, stream in zip(phases, prepared.streams, strict=True):
        heard = phase.name == "preferences"
        # A dataset that is aligned throughout is a part of a mixture like any other.
        threshold = prepared.threshold if heard and is_main else None
        try:
            check_stream(stream, objective if heard else "mle", threshold)
        except UserError as error:
            where = ", ".join([f"dataset {prepared.source.uri}"] * named + [f"phase {phase.name}"] * (len(phases) > 1))
            raise UserError(f"{where}: {error}" if where else str(error)) from None
