"""Kind `token-classifier`: what any token classifier of Hugging Face's transformers finds, such as personal data."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from scorers.classifiers import pretrained
from scorers.classifiers.classifier import ModelName
from scorers.classifiers.encoding import Encoder, Placed
from scorers.classifiers.engine import libraries
from scorers.classifiers.network import TokenNetwork
from scorers.classifiers.score_sentences import each_sentence
from scorers.classifiers.token_labels import Tag, decode, tags_of
from scorers.classifiers.transformers_models import content_sha256, longest_input
from scorers.contract import Document, Execution, ScoringError
from scorers.describe_error import describe
from scorers.fingerprint import fingerprint
from scorers.requirements import require
from scorers.spans import Finding, Located, merged, scores_of
from scorers.text import TextOptions

_REVISION = 2
_KIND = "token-classifier"


class TokenClassifierOptions(TextOptions):
    """Options of `token-classifier`.

    Attributes:
        model: folder with config.json, tokenizer and model.safetensors, or a model's name on the Hugging Face hub.
        labels: types that count, without the prefixes of BIO or BIOES, as in `labels=EMAIL+NAME`; None for all but `O`.
        threshold: least probability of a span, which is the mean over its tokens.
        score: score of a sentence: `share` of its characters in spans, or the `highest` probability of a span.
        revision: branch, tag or commit of a model on the hub. The fingerprint covers its content, not its name.
        sha256: expected hash of the weights file, in hex; required if it is a pickle.
    """

    model: ModelName = ""
    labels: list[str] | None = Field(default=None, min_length=1)
    threshold: float = Field(default=0.0, ge=0, le=1)
    score: Literal["share", "highest"] = "share"
    revision: str | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{64}$")

    @field_validator("labels", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return value.split("+") if isinstance(value, str) else value


class TokenClassifierScorer:
    """The characters of a sentence in the spans that a token classifier finds, each sentence on its own.

    A token takes its most probable label. Neighbouring tokens of a type are a span, whose probability is their mean: as
    in the pipeline of transformers with `aggregation_strategy="simple"`, which knows no BIOES.
    """

    Options = TokenClassifierOptions
    main_option: str | None = "model"
    runs_on_gpu = True
    redacts = True

    def __init__(self, name: str, options: TokenClassifierOptions, execution: Execution) -> None:
        self.name = name
        self._options = options
        self._execution = execution
        _require_packages()
        folder = pretrained.locate(options.model, options.revision, kind=_KIND)
        found = pretrained.find_weights(folder, options.sha256, execution.trusted_sha256)
        pretrained.refuse_other_architectures(found.folder, "ForTokenClassification", "a token classifier")
        model, tokenizer = pretrained.load(found, "TokenClassification")
        self._tags: list[Tag | None] = tags_of(model.config.id2label, options.labels, found.folder)
        self._encoder = Encoder(tokenizer, longest_input(model.config, tokenizer), "windows", execution.threads)
        self.fingerprint = fingerprint(
            _KIND,
            options.model_dump(mode="json", exclude={"model", "revision", "sha256"}),
            revision=_REVISION,
            libraries=libraries("torch"),
            files={**found.sha256, **content_sha256(model, tokenizer)},
        )
        self._network = TokenNetwork(model, execution)
        self.precision = self._network.precision

    @classmethod
    def check(cls, options: TokenClassifierOptions) -> None:
        """Raise `UserError` if something needed here is missing, without loading or downloading anything."""
        _require_packages()
        pretrained.locate(options.model, options.revision, download=False, kind=_KIND)

    def applies(self, document: Document) -> bool:
        """Return whether the option `documents` selects the document."""
        return self._options.apply_to(document)

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        """Score all documents together, in batches whose shapes depend on `documents` and `batch_tokens` alone."""
        return scores_of(self.locate(documents))

    def locate(self, documents: Sequence[Document]) -> list[Located | ScoringError]:
        """Return the scores of each document and its spans, with their probabilities."""
        found = each_sentence(documents, self._find, self._execution.deadline_s)
        return [self._located(document, each) for document, each in zip(documents, found, strict=True)]

    def _find(self, sentences: list[str], check: Callable[[], None]) -> list[list[Finding] | ScoringError]:
        encoded = self._encoder.placed(sentences)
        windows = [ids for each in encoded if isinstance(each, Placed) for ids in each.windows]
        outputs = iter(self._network.best(windows, check))
        return [
            self._decoded(sentence, each, [next(outputs) for _ in each.windows])
            if isinstance(each, Placed)
            else ScoringError("scorer-error", describe(each))
            for sentence, each in zip(sentences, encoded, strict=True)
        ]

    def _decoded(
        self, sentence: str, placed: Placed, outputs: list[NDArray[np.float32]]
    ) -> list[Finding] | ScoringError:
        best = placed.join(outputs)
        if not np.isfinite(best).all():
            return ScoringError("not-finite", "the network's output is NaN or infinite")
        spans = decode(sentence, placed.offsets, [self._tags[int(label)] for label in best[:, 1]], best[:, 0])
        wanted = self._options.labels
        return [
            each for each in spans if each.score >= self._options.threshold and (wanted is None or each.type in wanted)
        ]

    def _located(self, document: Document, found: list[list[Finding] | ScoringError]) -> Located | ScoringError:
        scores, findings, start = [], [], 0
        for each, end in zip(found, document.ends.tolist(), strict=True):
            if isinstance(each, ScoringError):
                return each
            scores.append(self._score(each, end - start))
            findings += [finding.moved(start) for finding in each]
            start = end
        return Located(np.asarray(scores, dtype=np.float32), findings)

    def _score(self, found: list[Finding], characters: int) -> float:
        if self._options.score == "highest":
            return max((each.score for each in found), default=0.0)
        return sum(end - start for start, end in merged((each.start, each.end) for each in found)) / characters


def _require_packages() -> None:
    require(_KIND, "torch", "transformers", install="transformers torch")
