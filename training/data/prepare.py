"""From a configuration to batches: the one road that training, evaluation and `phf tokenize` share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from pipeline.dataset import LabelledDataset
from scorers.errors import UserError
from training.config import DataConfig, ObjectiveConfig, TrainConfig
from training.data.builder import ensure_store
from training.data.mixture import MixtureSource
from training.data.options import StreamOptions
from training.data.order import Batches, BatchSource
from training.data.phases import Phase, PhasedSource, phase_at, plan_phases
from training.data.sources import Source, open_sources, refuse_mixed_scorers
from training.data.store import TokenStore
from training.data.stream import Stream
from training.data.thresholds import ThresholdChoice, check_stream, document_threshold, sentence_threshold
from training.data.tokenizers import Tokenizer, ensure_tokenizer, load_tokenizer
from training.objectives import OBJECTIVES, Objective, build
from training.presets import CONTEXT_LENGTH
from training.settings import fill_in

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PreparedDataset:
    """One of the datasets that a run trains on.

    Attributes:
        source: what it is, and its share of the run's blocks.
        store: its tokens.
        threshold: what the objective takes for aligned in it (filtering: over document means); None if it uses none.
        sentence_threshold: what reports take for an aligned sentence.
        streams: what is seen of it in each phase.
    """

    source: Source
    store: TokenStore
    threshold: ThresholdChoice | None
    sentence_threshold: ThresholdChoice
    streams: tuple[Stream, ...]


@dataclass(frozen=True)
class PreparedData:
    """What a run trains on. With a mixture, what is said of one dataset is said of `data.dataset`, the main one.

    Attributes:
        config: with column, context length and the thresholds of objective and mixture filled in.
        dataset: the labelled dataset.
        tokenizer: the base tokenizer; it knows the ids of the control tokens.
        store: its tokens.
        stream: what the objective sees of them; in a run of phases, the phase with preferences.
        batches: everything in order.
        objective: the loss; see `objective_at` for steps without preferences.
        threshold: what the objective takes for aligned (filtering: over document means); None where it uses none.
        sentence_threshold: what reports take for an aligned sentence, whatever the objective.
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

    def objective_at(self, step: int) -> Objective:
        """The loss of a step: plain in phases without preferences."""
        phase = self.phases[phase_at(self.phases, step)]
        return self.objective if phase.name == "preferences" else self.objective.plain()


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
    kind = OBJECTIVES[config.objective.name]
    context_length = config.data.context_length or CONTEXT_LENGTH
    phases = plan_phases(config.objective, config.training.steps(context_length))
    sources = open_sources(config)
    warnings = refuse_mixed_scorers(sources, config)
    for_sentences = [
        sentence_threshold(None if kind.filters else each.threshold, each.manifest, each.column, each.task, kind.name)
        for each in sources
    ]
    if kind.thresholds:
        # One loss has one threshold, whatever the dataset.
        for_sentences = for_sentences[:1] * len(sources)
    objective = _objective(config.objective, for_sentences[0])

    tokenizer = _tokenizer(config.data, [each.dataset for each in sources], progress)
    prepared = []
    for source, choice in zip(sources, for_sentences, strict=True):
        store = _store(source.dataset, tokenizer, source.store, progress)
        threshold = choice if kind.tags or kind.thresholds else None
        if kind.filters:
            threshold = document_threshold(source.threshold, source.manifest, source.column, source.task, store)
        streams = tuple(
            Stream(store, source.column, _options(config, phase, tokenizer, threshold, choice)) for phase in phases
        )
        prepared.append(PreparedDataset(source, store, threshold, choice, streams))
    for each in prepared:
        _check(each, phases, kind.name, is_main=each is prepared[0], named=len(prepared) > 1)
    main = prepared[0]
    return PreparedData(
        config=_resolved(config, tokenizer, prepared),
        dataset=main.source.dataset,
        tokenizer=tokenizer,
        store=main.store,
        stream=main.streams[[phase.name for phase in phases].index("preferences")],
        batches=_batches(config, phases, prepared),
        objective=objective,
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


def _objective(config: ObjectiveConfig, threshold: ThresholdChoice) -> Objective:
    if config.drop_tags is not None and not OBJECTIVES[config.name].tags:
        raise UserError(f"The objective {config.name} has no tags to drop. Remove objective.drop_tags.")
    return build(config.name, threshold=threshold.value, alpha=config.alpha, beta=config.beta, w_max=config.w_max)


def _options(
    config: TrainConfig,
    phase: Phase,
    tokenizer: Tokenizer,
    threshold: ThresholdChoice | None,
    for_sentences: ThresholdChoice,
) -> StreamOptions:
    kind = OBJECTIVES[config.objective.name]
    heard = phase.name == "preferences"
    tags = kind.tags and heard
    return StreamOptions(
        context_length=config.data.context_length or CONTEXT_LENGTH,
        eos_id=tokenizer.eos_id,
        held_out=config.data.held_out,
        held_out_seed=config.data.held_out_seed,
        filter_threshold=threshold.value if threshold is not None and kind.filters and heard else None,
        tag_threshold=for_sentences.value if tags else None,
        aligned_id=tokenizer.aligned_id if tags else None,
        misaligned_id=tokenizer.misaligned_id if tags else None,
        drop_tags=config.objective.drop_tags or 0.0 if tags else 0.0,
        seed=config.training.seed,
        part=phase.part,
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


def _resolved(config: TrainConfig, tokenizer: Tokenizer, prepared: Sequence[PreparedDataset]) -> TrainConfig:
    """With what the datasets decide filled in, so that it stays as it is when one of them is changed or gone."""
    main, *others = prepared
    if main.threshold is not None:
        objective = config.objective.model_copy(update={"threshold": main.threshold.value})
        config = config.model_copy(update={"objective": objective})
    if not others:
        return config
    mixture = tuple(
        asked if each.threshold is None else asked.model_copy(update={"threshold": each.threshold.value})
        for asked, each in zip(config.data.mixture, others, strict=True)
    )
    # The tokenizer by its place: an evaluation reads the main dataset alone.
    data = config.data.model_copy(update={"mixture": mixture, "tokenizer": tokenizer.name})
    return config.model_copy(update={"data": data})
