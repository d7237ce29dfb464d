"""Kind `classifier`: the probability of a label by any sequence classifier of Hugging Face's transformers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, field_validator

from scorers.classifiers import pretrained
from scorers.classifiers.encoding import Encoder, Long
from scorers.classifiers.engine import Engine, build_engine, check_engine, libraries
from scorers.classifiers.score_sentences import score_sentences
from scorers.classifiers.transformers_models import content_sha256, longest_input
from scorers.contract import Document, Execution, ScoringError
from scorers.errors import UserError
from scorers.fingerprint import fingerprint
from scorers.requirements import require
from scorers.text import TextOptions

_REVISION = 1

Activation = Literal["auto", "softmax", "sigmoid", "identity"]


def _absolute(model: str) -> str:
    # Actors may run in another working directory than the command; `owner/name` on the hub looks like a path.
    if model.startswith((".", "/", "~")) or (model and Path(model).exists()):
        return str(Path(model).expanduser().absolute())
    return model


ModelName = Annotated[str, AfterValidator(_absolute)]
"""The absolute path of a model's folder, or its name on the hub."""


class ClassifierOptions(TextOptions):
    """Options of `classifier`.

    Attributes:
        model: folder with config.json, tokenizer and model.safetensors, or a model's name on the Hugging Face hub.
        label: the label whose probability is the score, by name or number; not needed if there is only one.
        activation: how outputs become the score. `auto` follows the model's `problem_type`: sigmoid for
            `multi_label_classification`, identity for `regression`; if it has none, softmax over several outputs and
            sigmoid of a single one. A negative output under `identity` is an error of its document.
        long: how to score a sentence of more tokens than the model takes: `windows` takes the largest score of
            overlapping windows; `truncate` scores its beginning.
        engine: `torch`, or `onnx-int8` for CPUs: faster, with slightly different scores (needs `phf[onnx]`).
        revision: branch, tag or commit of a model on the hub. The fingerprint covers its content, not its name.
        sha256: expected hash of the weights file, in hex; required if it is a pickle.
    """

    model: ModelName = ""
    label: str | None = None
    activation: Activation = "auto"
    long: Long = "windows"
    engine: Engine = "torch"
    revision: str | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{64}$")

    @field_validator("label", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class ClassifierScorer:
    """The probability of a label, by any Hugging Face sequence classifier, for each sentence on its own.

    On a CPU a score is the same to 1e-6 in any batch and order (1.0e-6 measured at RoBERTa's base size).
    """

    Options = ClassifierOptions
    main_option: str | None = "model"
    runs_on_gpu = True

    def __init__(self, name: str, options: ClassifierOptions, execution: Execution) -> None:
        self.name = name
        self._options = options
        self._execution = execution
        _require_packages()
        check_engine(options.engine)
        folder = pretrained.locate(options.model, options.revision)
        found = pretrained.find_weights(folder, options.sha256, execution.trusted_sha256)
        model, tokenizer = pretrained.load(found)
        label = pretrained.label_index(model.config, options.label, found.folder)
        activation = _activation(options.activation, model.config)
        self._encoder = Encoder(tokenizer, longest_input(model.config, tokenizer), options.long, execution.threads)
        content = {**found.sha256, **content_sha256(model, tokenizer)}
        self.fingerprint = fingerprint(
            "classifier",
            {
                "documents": options.documents,
                "long": options.long,
                "engine": options.engine,
                "label": label,
                "activation": activation,
            },
            revision=_REVISION,
            libraries=libraries(options.engine),
            files=content,
        )
        self._network = build_engine(options.engine, model, _score(activation, label), execution, content)
        self.precision = self._network.precision

    @classmethod
    def check(cls, options: ClassifierOptions) -> None:
        """Raise `UserError` if something needed here is missing, without loading or downloading anything."""
        _require_packages()
        check_engine(options.engine)
        pretrained.locate(options.model, options.revision, download=False)

    def applies(self, document: Document) -> bool:
        """Return whether the option `documents` selects the document."""
        return self._options.apply_to(document)

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        """Score all documents together, in batches whose shapes depend on `documents` and `batch_tokens` alone."""
        return score_sentences(documents, self._encoder, self._network.scores, self._execution.deadline_s)


def _require_packages() -> None:
    require("classifier", "torch", "transformers", install="transformers torch")


def _activation(wanted: Activation, config: Any) -> Activation:
    """Resolve `auto` for a model.

    Raises:
        UserError: a softmax over a single output, which is always 1.
    """
    if wanted == "softmax" and config.num_labels == 1:
        raise UserError("The model has one output, whose softmax is always 1: use activation=sigmoid or identity.")
    if wanted != "auto":
        return wanted
    by_problem: dict[str | None, Activation] = {"multi_label_classification": "sigmoid", "regression": "identity"}
    return by_problem.get(config.problem_type, "softmax" if config.num_labels > 1 else "sigmoid")


def _score(activation: Activation, label: int) -> Callable[[Any], Any]:
    if activation == "softmax":
        return lambda logits: logits.softmax(-1)[:, label]
    if activation == "sigmoid":
        return lambda logits: logits[:, label].sigmoid()
    return lambda logits: logits[:, label]
