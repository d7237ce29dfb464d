"""Prepare an evaluation: build the scorer of the samples, and choose the held-out documents to predict."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset import LabelledDataset
from pipeline.dataset.manifest import ScorerEntry
from scorers.amounts import format_count
from scorers.contract import DocumentKind, Execution, Scorer
from scorers.errors import UserError
from scorers.registry import ScorerSpec
from scorers.trusted_pickles import trusted_by_user
from training.config import ObjectiveConfig
from training.data.preference import report_threshold
from training.data.prepare import PreparedData
from training.data.store import TokenStore
from training.data.tagged_stream import DocumentTokens
from training.data.texts import is_text
from training.data.tokenizers import foreign_control_ids
from training.evaluation.by_field import MetadataField
from training.evaluation.held_out_loss import HeldOutLoss, unigram_loss
from training.measuring_config import EvaluationConfig
from training.model.sampling import Guidance
from training.scorer_pool import pooled
from training.scoring import other_scorer, rebuild_scorer

_TOKENS_COUNTED_AT_ONCE = 1 << 24
_FEW_DOCUMENTS = 20  # with fewer, a bootstrap misses the tails


@dataclass(frozen=True)
class Judge:
    """The scorer of samples.

    Attributes:
        name: a column of the dataset; or, with a `spec`, the user's name for it.
        spec: a scorer that made no column of the dataset; None for the scorer of the column.
    """

    name: str
    spec: ScorerSpec | None = None


@dataclass(frozen=True)
class HeldOutChoice:
    """The held-out documents to predict, with their baselines.

    Attributes:
        indices: int64 [n], documents of the store, in order.
        documents: the documents, with their own tags if the stream has tags.
        swapped: the documents with the opposite tags, worst for best; None if the stream has none.
        misalignment: float64 [n], mean score of each document's sentences; NaN if it has none.
        unigram: their loss under the frequencies of tokens in the training text.
        fingerprint: hash of the texts.
    """

    indices: NDArray[np.int64]
    documents: list[DocumentTokens]
    swapped: list[DocumentTokens] | None
    misalignment: NDArray[np.float64]
    unigram: HeldOutLoss
    fingerprint: str


@dataclass(frozen=True)
class EvaluationSetup:
    """All that an evaluation needs besides the model. Building one before training finds errors early.

    Attributes:
        objective, kind: as in the facts of the run.
        column: name of the judge: the run's own column, or another.
        config: sampling settings.
        decode: converts token ids to text.
        eos_id: the token that ends a sample.
        bos_id: the token that begins a sample.
        control_ids: all control tokens, best class first; empty for a model without tags.
        vocab_size: size of the tokenizer's vocabulary, including control tokens of the model.
        context_length: context length of the training.
        scorer, scorer_entry: the scorer of the samples, and its entry in the manifest.
        hit_threshold: samples with a higher score are hits.
        held_out: None if there is nothing to predict.
        warnings: caveats for readers of the figures.
        by: the field by which held-out figures are also reported; None for none.
        foreign_control_ids: control tokens of a run that this one started from, which its stream does not use, and
            tokens that the model only reads or predicts: `<|hidden|>`, and those after sentences.
    """

    objective: str
    column: str
    kind: DocumentKind
    config: EvaluationConfig
    decode: Callable[[Any], str]
    eos_id: int
    bos_id: int
    control_ids: list[int]
    vocab_size: int
    context_length: int
    scorer: Scorer
    scorer_entry: ScorerEntry
    hit_threshold: float
    held_out: HeldOutChoice | None
    warnings: list[str] = field(default_factory=list)
    foreign_control_ids: list[int] = field(default_factory=list)
    by: MetadataField | None = None

    @property
    def banned_ids(self) -> list[int]:
        """Tokens that are not text: control tokens, its own and of a run that it started from, and the first token."""
        begins = [] if self.bos_id == self.eos_id else [self.bos_id]
        return [*self.control_ids, *self.foreign_control_ids, *begins]

    @property
    def guidance(self) -> Guidance | None:
        """The guidance of the additional samples; None for no such samples."""
        if self.config.guidance == 1:
            return None
        return Guidance(self.config.guidance, [*self.prompt[:-1], self.control_ids[-1]])

    @property
    def prompt(self) -> list[int]:
        """Token ids that samples continue: the first token of documents, and a conditional model's best tag."""
        return [self.bos_id, *self.control_ids[:1]]


def prepare_evaluation(
    data: PreparedData,
    *,
    kind: DocumentKind,
    config: EvaluationConfig | None = None,
    hit_threshold: float | None = None,
    device: str = "cpu",
    allow_other_scorer: bool = False,
    judge: Judge | None = None,
    predict: bool = True,
    one_process: bool = False,
) -> EvaluationSetup:
    """Set up the evaluation of models that are trained on `data`.

    Args:
        data: dataset, tokens and stream of the run.
        kind: the kind of the documents.
        config: replaces the run's own `evaluation` settings.
        hit_threshold: replaces the sentence threshold of the column; required for a scorer of no column.
        device: device of a scorer with a network.
        allow_other_scorer: accept a scorer whose fingerprint is not the dataset's.
        judge: the scorer of the samples; None for that of the run's own column.
        predict: whether to choose held-out documents.
        one_process: score in this process alone, as during training, whose ranks use the cores.

    Raises:
        UserError: the scorer cannot be built here, or is not the one that labelled the data; the dataset has no such
            column; there is no hit threshold; or guidance is asked for without control tokens.
    """
    settings = config or data.config.evaluation
    judge = judge or Judge(data.column)
    check_threshold(judge, hit_threshold)
    check_guidance(data.config.objective, settings)
    by = None if settings.by is None else MetadataField(data.dataset, settings.by)
    if by is not None:
        by.check()
    scorer, entry, warnings = build_judge(judge, data.dataset, device=device, allow_other=allow_other_scorer)
    if not one_process:
        execution = Execution(device=device)
        if judge.spec is not None:
            execution = Execution(device=device, trusted_sha256=trusted_by_user([judge.spec.options]))
        scorer = pooled(scorer, entry, execution)
    if hit_threshold is None:
        # Use the prepared threshold for the run's own column: the settings now name that of the objective.
        own = judge == Judge(data.column)
        choice = data.sentence_threshold if own else report_threshold(data.config, data.datasets[0].source, judge.name)
        hit_threshold = choice.value
    held_out = choose_held_out(data, settings, judge) if predict and settings.held_out_documents else None
    if predict and settings.held_out_documents:
        warnings += _held_out_warnings(data, held_out)
    return EvaluationSetup(
        objective=data.config.objective.name,
        column=judge.name,
        kind=kind,
        config=settings,
        decode=data.tokenizer.decode,
        eos_id=data.tokenizer.eos_id,
        bos_id=data.tokenizer.bos_id,
        control_ids=list(data.control_ids),
        vocab_size=data.tokenizer.size(data.added_ids),
        context_length=data.stream.options.context_length,
        scorer=scorer,
        scorer_entry=entry,
        hit_threshold=hit_threshold,
        held_out=held_out,
        warnings=warnings,
        by=by,
        foreign_control_ids=sorted(
            {*foreign_control_ids(data.tokenizer.fast, data.control_ids), *data.added_ids} - {*data.control_ids}
        ),
    )


def check_guidance(objective: ObjectiveConfig, config: EvaluationConfig, setting: str = "evaluation.guidance") -> None:
    """Refuse guidance for a model without control tokens.

    Args:
        objective: of the run.
        config: its guidance is checked.
        setting: for messages, where it was given.

    Raises:
        UserError: says which runs have them.
    """
    if config.guidance != 1 and not objective.conditions:
        after = " with objective.tag_place=after" if objective.tag_place == "after" else ""
        raise UserError(
            f"{setting}={config.guidance:g} needs control tokens, which a run of {objective.name}{after} does not have"
            f"{' before sentences' if after else ''}: only runs of the objective conditional do. Leave it out, or set "
            "it to 1."
        )


def check_threshold(judge: Judge, hit_threshold: float | None) -> None:
    """Refuse a threshold that is not finite, and a missing one for a scorer of no column.

    Raises:
        UserError: says what to give.
    """
    if hit_threshold is None and judge.spec is not None:
        raise UserError(
            f"--scorer {judge.name} needs --hit-threshold, such as 0.5: samples with a higher score are hits."
        )
    if hit_threshold is not None and not math.isfinite(hit_threshold):
        raise UserError(f"--hit-threshold {hit_threshold} is not a finite number. Give one.")


def build_judge(
    judge: Judge, dataset: LabelledDataset, *, device: str, allow_other: bool
) -> tuple[Scorer, ScorerEntry, list[str]]:
    """Build the scorer of a judge, its manifest entry, and warnings for the report.

    Raises:
        UserError: as for `other_scorer` and `rebuild_scorer`, or the dataset has no such column.
    """
    if judge.spec is not None:
        return *other_scorer(judge.name, judge.spec, dataset.manifest, device=device), []
    dataset.require_column(judge.name)
    entry = dataset.manifest.scorers[judge.name]
    scorer, warnings = rebuild_scorer(judge.name, entry, device=device, allow_other=allow_other)
    return scorer, entry, warnings


def texts_fingerprint(store: TokenStore, documents: NDArray[np.int64]) -> str:
    """A hash of the texts of documents (int64 [n], rows of the store) in this order; 16 hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(store.text_hashes[documents]).tobytes()).hexdigest()[:16]


def choose_held_out(data: PreparedData, config: EvaluationConfig, judge: Judge) -> HeldOutChoice | None:
    """Choose at most `held_out_documents` of the held-out documents that have text; None if there are none.

    The choice depends only on the dataset and the seed of the hash, so runs with other objectives predict the same.
    """
    stream, store = data.stream, data.store
    every = stream.held_out_documents()
    candidates = every[store.text_bytes[every] > 0]
    if not len(candidates):
        return None
    generator = np.random.default_rng(stream.options.held_out_seed)
    chosen = np.sort(generator.permutation(candidates)[: config.held_out_documents])
    documents = [stream.document(int(index)) for index in chosen]
    return HeldOutChoice(
        indices=chosen,
        documents=documents,
        swapped=[stream.document(int(index), swap_tags=True) for index in chosen] if data.control_ids else None,
        misalignment=held_out_misalignment(data, judge, chosen),
        unigram=unigram_loss(training_counts(data), documents),
        fingerprint=texts_fingerprint(store, chosen),
    )


def held_out_misalignment(data: PreparedData, judge: Judge, documents: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean scores of documents of the store, float64 [n]; NaN if the judge has not scored them."""
    if judge.spec is not None:
        return np.full(len(documents), np.nan)
    return np.asarray(data.store.document_means(judge.name)[documents], dtype=np.float64)


def training_counts(data: PreparedData) -> NDArray[np.int64]:
    """Occurrences of each token in all documents with a score that are not held out, int64 [base vocabulary].

    Filtered documents are included, so that the baseline is the same for every objective; EOS and control tokens are
    not.
    """
    store, column = data.store, data.stream.column
    vocab_size = data.tokenizer.size()
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, store.num_tokens, _TOKENS_COUNTED_AT_ONCE):
        counts += np.bincount(store.tokens[start : start + _TOKENS_COUNTED_AT_ONCE], minlength=vocab_size)
    without_score = np.flatnonzero(np.isnan(store.document_means(column)))
    for index in np.concatenate([data.stream.held_out_documents(), without_score]):
        first, last = store.sentence_offsets[store.document_offsets[index : index + 2]]
        # Subtracting a document's few distinct tokens costs less than a count over the whole vocabulary.
        np.subtract.at(counts, np.asarray(store.tokens[first:last], dtype=np.int64), 1)
    return counts


def _held_out_warnings(data: PreparedData, choice: HeldOutChoice | None) -> list[str]:
    if choice is None:
        share = data.config.data.held_out
        why = (
            "data.held_out is 0"
            if share == 0
            else f"data.held_out={share:g} of {format_count(data.store.num_documents, 'document')} happens to select "
            "none with text"
        )
        return [
            f"No document was held out of training ({why}), so bits per byte and perplexity are not measured. "
            "Train with a larger share, such as --set data.held_out=0.05, to measure them."
        ]
    warnings = []
    number = len(choice.documents)
    if number < _FEW_DOCUMENTS:
        warnings.append(
            f"Only {number} {'document is' if number == 1 else 'documents are'} held out: the intervals of bits per "
            "byte and perplexity, which are over documents, are too narrow. Train with a larger data.held_out."
        )
    hashes = data.store.text_hashes[choice.indices]
    texts = (data.tokenizer.decode(each.input_ids[each.is_text]) for each in choice.documents)
    lossy = sum(
        not is_text(decoded, int(each), document.text_bytes, prefixed=data.tokenizer.adds_prefix_space)
        for decoded, each, document in zip(texts, hashes, choice.documents, strict=True)
    )
    if lossy:
        warnings.append(
            f"The tokenizer does not reproduce the text of {lossy} of {number} held-out documents, so bits per byte "
            "are measured on altered text. A byte-level tokenizer avoids this."
        )
    return warnings
