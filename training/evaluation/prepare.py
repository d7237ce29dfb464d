"""What an evaluation needs besides the model: the scorer, and the held-out documents that it is asked to predict."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset import LabelledDataset
from pipeline.dataset.manifest import ScorerEntry
from scorers.amounts import count_of
from scorers.contract import DocumentKind, Scorer
from scorers.errors import UserError
from scorers.registry import ScorerSpec
from training.config import EvaluationConfig
from training.data.preference import report_threshold
from training.data.prepare import PreparedData
from training.data.store import TokenStore
from training.data.stream import DocumentTokens
from training.data.texts import is_text
from training.data.tokenizers import foreign_control_ids
from training.evaluation.heldout import HeldOutLoss, unigram_loss
from training.model.sampling import Guidance
from training.scoring import other_scorer, rebuild_scorer

_TOKENS_COUNTED_AT_ONCE = 1 << 24
_FEW_DOCUMENTS = 20  # a bootstrap over fewer misses the tails


@dataclass(frozen=True)
class Judge:
    """What scores samples.

    Attributes:
        name: a column of the dataset; or, with a `spec`, what the user calls it.
        spec: a scorer that the dataset knows nothing of; None for what scored the column.
    """

    name: str
    spec: ScorerSpec | None = None


@dataclass(frozen=True)
class HeldOutChoice:
    """The held-out documents that are predicted, and what they are measured against.

    Attributes:
        indices: int64 [n], documents of the store, in order.
        documents: with their own tags where the stream has tags.
        swapped: with the opposite ones, the worst for the best; None where it has none.
        misalignment: float64 [n], mean score of each document's sentences; NaN where it has none.
        unigram: their cost under the frequencies of tokens in the training text.
        fingerprint: of the texts.
    """

    indices: NDArray[np.int64]
    documents: list[DocumentTokens]
    swapped: list[DocumentTokens] | None
    misalignment: NDArray[np.float64]
    unigram: HeldOutLoss
    fingerprint: str


@dataclass(frozen=True)
class EvaluationSetup:
    """All that an evaluation needs besides the model. Building one finds what is wrong before any training.

    Attributes:
        objective, kind: of the run.
        column: what judges the samples is called; the run's own column, or another.
        config: how to sample.
        decode: from token ids to text.
        eos_id: the token that ends a sample.
        bos_id: the token that begins one.
        control_ids: all control tokens, that of the best class first; none for a model without tags.
        vocab_size: tokens of the tokenizer, control tokens of the model included.
        context_length: tokens that the model is trained on at once.
        scorer, scorer_entry: what scores the samples; what the manifest says of it.
        hit_threshold: a sample with a higher score is a hit.
        held_out: None where there is nothing to predict.
        warnings: what a reader of the figures must know.
        foreign_control_ids: control tokens of a run that this one started from, which its stream does not use.
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

    @property
    def banned_ids(self) -> list[int]:
        """What is no text: its own control tokens, those of a run that it started from, and the beginning of one."""
        begins = [] if self.bos_id == self.eos_id else [self.bos_id]
        return [*self.control_ids, *self.foreign_control_ids, *begins]

    @property
    def guidance(self) -> Guidance | None:
        """How samples are guided that are drawn besides the plain ones; None for none."""
        if self.config.guidance == 1:
            return None
        return Guidance(self.config.guidance, [*self.prompt[:-1], self.control_ids[-1]])

    @property
    def prompt(self) -> list[int]:
        """What samples continue: what documents begin with, and a conditional model's token of the best class."""
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
) -> EvaluationSetup:
    """Set up the evaluation of models that are trained on `data`.

    Args:
        data: dataset, tokens and stream of the run.
        kind: what the documents are.
        config: in place of the run's own.
        hit_threshold: in place of the sentence threshold of the column; needed with a scorer of no column.
        device: where a scorer with a network runs.
        allow_other_scorer: go on with a scorer whose fingerprint is not the dataset's.
        judge: what scores the samples; None for what scored the run's own column.
        predict: whether held-out documents are looked for.

    Raises:
        UserError: the scorer cannot be built here, or is not the one that labelled the data; the dataset has no such
            column; nobody said what a hit is; or guidance is asked for of a model without control tokens.
    """
    settings = config or data.config.evaluation
    judge = judge or Judge(data.column)
    check_threshold(judge, hit_threshold)
    check_guidance(data.config.objective.name, settings)
    scorer, entry, warnings = build_judge(judge, data.dataset, device=device, allow_other=allow_other_scorer)
    if hit_threshold is None:
        # Of the own column not asked again: by now the settings name the threshold of the objective.
        own = judge == Judge(data.column)
        asked = data.sentence_threshold if own else report_threshold(data.config, data.datasets[0].source, judge.name)
        hit_threshold = asked.value
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
        vocab_size=data.tokenizer.size(data.control_ids),
        context_length=data.stream.options.context_length,
        scorer=scorer,
        scorer_entry=entry,
        hit_threshold=hit_threshold,
        held_out=held_out,
        warnings=warnings,
        foreign_control_ids=foreign_control_ids(data.tokenizer.fast, data.control_ids),
    )


def check_guidance(objective: str, config: EvaluationConfig) -> None:
    """Refuse guidance of a model that has no control tokens to be guided by.

    Raises:
        UserError: says which runs have.
    """
    if config.guidance != 1 and objective != "conditional":
        raise UserError(
            f"evaluation.guidance={config.guidance:g} is away from the worst control token, and a run of {objective} "
            "has none: only those of the objective conditional have. Leave it out, or set it to 1."
        )


def check_threshold(judge: Judge, hit_threshold: float | None) -> None:
    """Refuse a threshold above which nothing is a hit or not, and none where only the user knows one.

    Raises:
        UserError: says what to give.
    """
    if hit_threshold is None and judge.spec is not None:
        raise UserError(
            f"--scorer {judge.name}: nobody has said which of its scores are bad. Give --hit-threshold, such as "
            "0.5: samples with a higher score are hits."
        )
    if hit_threshold is not None and not math.isfinite(hit_threshold):
        raise UserError(f"--hit-threshold {hit_threshold} is no number that scores can be above or below. Give one.")


def build_judge(
    judge: Judge, dataset: LabelledDataset, *, device: str, allow_other: bool
) -> tuple[Scorer, ScorerEntry, list[str]]:
    """The scorer of a judge, what a manifest says of it, and warnings that belong into the report.

    Raises:
        UserError: as `other_scorer` and `rebuild_scorer`, or the dataset has no such column.
    """
    if judge.spec is not None:
        return *other_scorer(judge.name, judge.spec, dataset.manifest, device=device), []
    dataset.require_column(judge.name)
    entry = dataset.manifest.scorers[judge.name]
    scorer, warnings = rebuild_scorer(judge.name, entry, device=device, allow_other=allow_other)
    return scorer, entry, warnings


def texts_fingerprint(store: TokenStore, documents: NDArray[np.int64]) -> str:
    """Of the texts of documents, in this order; 16 hexadecimal digits.

    Args:
        store: of a dataset.
        documents: int64 [documents], rows of the store.
    """
    return hashlib.sha256(np.ascontiguousarray(store.text_hashes[documents]).tobytes()).hexdigest()[:16]


def choose_held_out(data: PreparedData, config: EvaluationConfig, judge: Judge) -> HeldOutChoice | None:
    """At most `held_out_documents` of the held-out documents that have text; None where there are none.

    Which ones depends on the dataset and the seed of the hash alone, so runs with another objective predict the same.
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
    """float64 [n], mean score of documents of the store; NaN where the judge has not scored them."""
    if judge.spec is not None:
        return np.full(len(documents), np.nan)
    return np.asarray(data.store.document_means(judge.name)[documents], dtype=np.float64)


def training_counts(data: PreparedData) -> NDArray[np.int64]:
    """int64 [base vocabulary]: occurrences of each token in all documents with a score that are not held out.

    Filtered documents count too, so that the baseline is the same for every objective; EOS and control tokens don't.
    """
    store, column = data.store, data.stream.column
    vocab_size = data.tokenizer.size()
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, store.num_tokens, _TOKENS_COUNTED_AT_ONCE):
        counts += np.bincount(store.tokens[start : start + _TOKENS_COUNTED_AT_ONCE], minlength=vocab_size)
    without_score = np.flatnonzero(np.isnan(store.document_means(column)))
    for index in np.concatenate([data.stream.held_out_documents(), without_score]):
        first, last = store.sentence_offsets[store.document_offsets[index : index + 2]]
        # Taking away a document's few different tokens costs less than a count over the whole vocabulary.
        np.subtract.at(counts, np.asarray(store.tokens[first:last], dtype=np.int64), 1)
    return counts


def _held_out_warnings(data: PreparedData, choice: HeldOutChoice | None) -> list[str]:
    if choice is None:
        share = data.config.data.held_out
        why = (
            "data.held_out is 0"
            if share == 0
            else f"data.held_out={share:g} of {count_of(data.store.num_documents, 'document')} happens to be none "
            "with text"
        )
        return [
            f"No document was held out of training ({why}), so bits per byte and perplexity are not measured. "
            "Train with a larger share, such as --set data.held_out=0.05, to measure them."
        ]
    warnings = []
    number = len(choice.documents)
    if number < _FEW_DOCUMENTS:
        warnings.append(
            f"Only {number} {'document is' if number == 1 else 'documents are'} held out: take the intervals of bits "
            "per byte and perplexity, which are over documents, for too narrow. Train with a larger data.held_out."
        )
    hashes = data.store.text_hashes[choice.indices]
    texts = (data.tokenizer.decode(each.input_ids[each.is_text]) for each in choice.documents)
    lossy = sum(
        not is_text(decoded, int(each), document.text_bytes, prefixed=data.tokenizer.prefixes)
        for decoded, each, document in zip(texts, hashes, choice.documents, strict=True)
    )
    if lossy:
        warnings.append(
            f"The tokenizer does not reproduce the text of {lossy} of {number} held-out documents, so bits per byte "
            "are those of a text that it has changed. A byte-level tokenizer avoids it."
        )
    return warnings
