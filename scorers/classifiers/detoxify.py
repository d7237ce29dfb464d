"""Kind `detoxify`: the probability that a sentence is toxic, by Detoxify (Hanu & Unitary team, 2020)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from scorers.classifiers import detoxify_model
from scorers.classifiers.encoding import Encoder, Long
from scorers.classifiers.engine import Engine, build_engine, check_engine, libraries
from scorers.classifiers.score_sentences import score_sentences
from scorers.classifiers.transformers_models import content_sha256
from scorers.contract import Document, Execution, ScoringError
from scorers.errors import UserError
from scorers.fingerprint import fingerprint
from scorers.requirements import require
from scorers.text import TextOptions

_REVISION = 2


class DetoxifyOptions(TextOptions):
    """Options of `detoxify`.

    Attributes:
        model: a published variant, or the path of a checkpoint in Detoxify's format. The paper uses `unbiased`.
        config: folder with the base model's config.json and tokenizer files; None for the hub or its cache.
        sha256: expected hash of the checkpoint, in hex; required if a local one holds more than plain weights.
        long: how to score a sentence of more tokens than the model takes, 512 for the published ones: `windows` takes
            the largest score of overlapping windows; `truncate` scores its beginning, as Detoxify does.
        engine: `torch`, or `onnx-int8` for CPUs: faster, with slightly different scores (needs `phf[onnx]`).
    """

    model: str = "unbiased"
    config: str | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{64}$")
    long: Long = "windows"
    engine: Engine = "torch"

    @field_validator("model", "config")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        # Actors may run in another working directory than the command. A name that is not a path fails later.
        if value is None or not ("/" in value or Path(value).exists()):
            return value
        return str(Path(value).expanduser().absolute())


class DetoxifyScorer:
    """The probability, between 0 and 1, of the class `toxicity`, for each sentence on its own.

    On a CPU, for every sentence that fits the model, a score equals Detoxify's own up to the last bits of matrix
    products, in any batch and order: within 1e-6 for small models, 1.1e-6 measured at RoBERTa's base size. The
    documents of a call share their deadlines, since the network's time grows with their length alone.
    """

    Options = DetoxifyOptions
    main_option: str | None = "model"
    runs_on_gpu = True

    def __init__(self, name: str, options: DetoxifyOptions, execution: Execution) -> None:
        self.name = name
        self._options = options
        self._execution = execution
        _require_packages()
        check_engine(options.engine)
        checkpoint = detoxify_model.locate(options.model, options.sha256)
        folder = _folder(options)
        trusted = checkpoint.sha256 in execution.trusted_sha256 or options.model in detoxify_model.VARIANTS
        detoxify = detoxify_model.load(checkpoint, folder, "cpu", trusted=trusted)
        toxicity = _toxicity(detoxify.class_names, checkpoint.path)
        content = {"checkpoint": checkpoint.sha256, **content_sha256(detoxify.model, detoxify.tokenizer)}
        self.fingerprint = fingerprint(
            "detoxify",
            {"documents": options.documents, "long": options.long, "engine": options.engine},
            revision=_REVISION,
            libraries=libraries(options.engine, "detoxify"),
            files=content,
        )
        self._encoder = Encoder(
            detoxify.tokenizer, detoxify.tokenizer.model_max_length, options.long, execution.threads
        )
        self._network = build_engine(
            options.engine, detoxify.model, lambda logits: logits[:, toxicity].sigmoid(), execution, content
        )
        self.precision = self._network.precision

    @classmethod
    def check(cls, options: DetoxifyOptions) -> None:
        """Raise `UserError` if something needed here is missing, without loading or downloading anything."""
        _require_packages()
        check_engine(options.engine)
        detoxify_model.locate(options.model, options.sha256, download=False)
        _folder(options)

    def applies(self, document: Document) -> bool:
        """Return whether the option `documents` selects the document."""
        return self._options.apply_to(document)

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        """Score all documents together, in batches whose shapes depend on `documents` and `batch_tokens` alone."""
        return score_sentences(documents, self._encoder, self._network.scores, self._execution.deadline_s)


def _require_packages() -> None:
    require("detoxify", "detoxify", "torch", "transformers", install="detoxify")


def _folder(options: DetoxifyOptions) -> Path | None:
    if options.config is None:
        return None
    folder = Path(options.config)
    if not (folder / "config.json").is_file():
        raise UserError(f"The option config names {folder}, which is not a folder with a config.json.")
    return folder


def _toxicity(classes: list[str], path: Path) -> int:
    if "toxicity" not in classes:
        raise UserError(f"The checkpoint {path} has no class 'toxicity'; its classes are {', '.join(classes)}.")
    return classes.index("toxicity")
