"""From a configuration to batches: the one road that training, evaluation and `phf tokenize` share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.dataset import LabelledDataset, open_dataset
from scorers.errors import UserError
from training.config import DataConfig, ObjectiveConfig, TrainConfig
from training.data.builder import ensure_store
from training.data.options import StreamOptions
from training.data.order import BatchSource
from training.data.store import TokenStore
from training.data.stream import Stream
from training.data.thresholds import ThresholdChoice, check_stream, document_threshold, sentence_threshold
from training.data.tokenizers import Tokenizer, ensure_tokenizer, load_tokenizer
from training.objectives import OBJECTIVES, Objective, build
from training.presets import CONTEXT_LENGTH
from training.settings import fill_in

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PreparedData:
    """What a run trains on.

    Attributes:
        config: with column, context length and the objective's threshold filled in.
        dataset: the labelled dataset.
        tokenizer: the base tokenizer; it knows the ids of the control tokens.
        store: its tokens.
        stream: what the objective sees of them.
        batches: the stream in order.
        objective: the loss.
        threshold: what the objective takes for aligned (filtering: over document means); None where it uses none.
        sentence_threshold: what reports take for an aligned sentence, whatever the objective.
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
    column, name = config.data.column or config.task, config.objective.name
    kind = OBJECTIVES[name]
    dataset = open_dataset(config.data.dataset)
    dataset.require_column(column)
    given = config.objective.threshold
    for_sentences = sentence_threshold(None if kind.filters else given, dataset.manifest, column, config.task, name)
    objective = _objective(config.objective, for_sentences)

    tokenizer, store = tokenize(config.data, dataset, progress)
    threshold = for_sentences if kind.tags or kind.thresholds else None
    if kind.filters:
        threshold = document_threshold(given, dataset.manifest, column, config.task, store)
    options = StreamOptions(
        context_length=config.data.context_length or CONTEXT_LENGTH,
        eos_id=tokenizer.eos_id,
        held_out=config.data.held_out,
        held_out_seed=config.data.held_out_seed,
        filter_threshold=threshold.value if threshold is not None and kind.filters else None,
        tag_threshold=for_sentences.value if kind.tags else None,
        aligned_id=tokenizer.aligned_id if kind.tags else None,
        misaligned_id=tokenizer.misaligned_id if kind.tags else None,
        drop_tags=config.objective.drop_tags or 0.0,
        seed=config.training.seed,
    )
    stream = Stream(store, column, options)
    check_stream(stream, name, threshold)
    if threshold is not None:
        config = config.model_copy(
            update={"objective": config.objective.model_copy(update={"threshold": threshold.value})}
        )
    return PreparedData(
        config=config,
        dataset=dataset,
        tokenizer=tokenizer,
        store=store,
        stream=stream,
        batches=BatchSource(stream, config.training.batch_size, config.training.seed),
        objective=objective,
        threshold=threshold,
        sentence_threshold=for_sentences,
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


def _objective(config: ObjectiveConfig, threshold: ThresholdChoice) -> Objective:
    if config.drop_tags is not None and not OBJECTIVES[config.name].tags:
        raise UserError(f"The objective {config.name} has no tags to drop. Remove objective.drop_tags.")
    return build(config.name, threshold=threshold.value, alpha=config.alpha, beta=config.beta, w_max=config.w_max)
