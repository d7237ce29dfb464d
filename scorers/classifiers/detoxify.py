"""Kind `detoxify`: the probability that a sentence is toxic, by Detoxify (Hanu & Unitary team, 2020)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from scorers.classifiers import detoxify_model
from scorers.contract import Document, Execution, ScoringError
from scorers.errors import UserError
from scorers.fingerprint import fingerprint, library_versions
from scorers.isolation import attempt
from scorers.requirements import require
from scorers.text import TextOptions

_REVISION = 1

# Sentences that are sorted by length together: padding is 1.1 times the tokens then, and 11 times in corpus order.
_WINDOW = 2048


class DetoxifyOptions(TextOptions):
    """Options of `detoxify`.

    Attributes:
        model: a published variant, or the path of a checkpoint in Detoxify's format. The paper's is `unbiased`.
        config: folder with the base model's config.json and tokenizer files; None for the hub or its cache.
        sha256: what the checkpoint must hash to, in hex; needed where a local one holds more than plain weights.
    """

    model: str = "unbiased"
    config: str | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{64}$")

    @field_validator("model", "config")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        # Actors may have another working directory than the command. A name that is no path is left for the error.
        if value is None or not ("/" in value or Path(value).exists()):
            return value
        return str(Path(value).expanduser().absolute())


class DetoxifyScorer:
    """The probability, between 0 and 1, of the class `toxicity`, for each sentence on its own.

    A sentence is cut at what the model takes, 512 tokens for the published ones. The network has no deadline: its time
    grows with the number of sentences and nothing else.
    """

    Options = DetoxifyOptions
    main_option: str | None = "model"
    runs_on_gpu = True

    def __init__(self, name: str, options: DetoxifyOptions, execution: Execution) -> None:
        self.name = name
        self._options = options
        self._execution = execution
        _require_packages()
        checkpoint = detoxify_model.locate(options.model, options.sha256)
        folder = _folder(options)
        trusted = options.sha256 is not None or options.model in detoxify_model.VARIANTS
        self._detoxify = detoxify_model.load(checkpoint, folder, execution.device, trusted=trusted)
        self._class = _toxicity(self._detoxify.class_names, checkpoint.path)
        self.fingerprint = fingerprint(
            "detoxify",
            {"documents": options.documents},
            revision=_REVISION,
            # A build for another device ("2.13.0+cpu") is the same version.
            libraries={
                name: version.partition("+")[0]
                for name, version in library_versions("detoxify", "transformers", "tokenizers", "torch").items()
            },
            files={"checkpoint": checkpoint.sha256, **detoxify_model.content_sha256(self._detoxify)},
        )

    @classmethod
    def check(cls, options: DetoxifyOptions) -> None:
        """Raise `UserError` when something is missing to run here, without loading or downloading anything."""
        _require_packages()
        detoxify_model.locate(options.model, options.sha256, download=False)
        _folder(options)

    def applies(self, document: Document) -> bool:
        """By the option `documents`."""
        return self._options.apply_to(document)

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        """Scores of all documents at once, in batches whose shapes depend on `documents` and `batch_tokens` alone."""
        encoded = [attempt(self._encode, document, self._execution.deadline_s) for document in documents]
        sentences = [ids for each in encoded if not isinstance(each, ScoringError) for ids in each]
        scores = self._probabilities(sentences)
        results: list[NDArray[np.float32] | ScoringError] = []
        done = 0
        for each in encoded:
            if isinstance(each, ScoringError):
                results.append(each)
                continue
            found = scores[done : done + len(each)]
            done += len(each)
            finite = bool(np.isfinite(found).all())
            results.append(found if finite else ScoringError("not-finite", "the network's output is no number"))
        return results

    def _encode(self, document: Document) -> list[list[int]]:
        sentences = document.sentences()
        if not sentences:
            return []
        ids: list[list[int]] = self._detoxify.tokenizer(sentences, truncation=True)["input_ids"]
        return ids

    def _probabilities(self, sentences: list[list[int]]) -> NDArray[np.float32]:
        import torch

        scores = np.zeros(len(sentences), dtype=np.float32)
        model, tokenizer = self._detoxify.model, self._detoxify.tokenizer
        threads = torch.get_num_threads()
        torch.set_num_threads(self._execution.threads)
        try:
            with torch.inference_mode():
                for batch in batches([len(ids) for ids in sentences], self._execution.batch_tokens):
                    padded = tokenizer.pad({"input_ids": [sentences[i] for i in batch]}, return_tensors="pt")
                    logits = model(**padded.to(model.device))[0][:, self._class]
                    scores[batch] = torch.sigmoid(logits.float()).cpu().numpy()
        finally:
            torch.set_num_threads(threads)
        return scores


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices of sequences of like length, at most `tokens` a batch with the padding, one sequence at least."""
    for start in range(0, len(lengths), _WINDOW):
        window = range(start, min(start + _WINDOW, len(lengths)))
        batch: list[int] = []
        longest_first = sorted(window, key=lambda index: -lengths[index])
        for index in longest_first:
            if batch and (len(batch) + 1) * lengths[batch[0]] > tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch


def _require_packages() -> None:
    require("detoxify", "detoxify", "torch", "transformers", install="detoxify")


def _folder(options: DetoxifyOptions) -> Path | None:
    if options.config is None:
        return None
    folder = Path(options.config)
    if not (folder / "config.json").is_file():
        raise UserError(f"The option config names {folder}, which is no folder with a config.json.")
    return folder


def _toxicity(classes: list[str], path: Path) -> int:
    if "toxicity" not in classes:
        raise UserError(f"The checkpoint {path} has no class 'toxicity'; its classes are {', '.join(classes)}.")
    return classes.index("toxicity")
