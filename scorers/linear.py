"""Kind `linear`: alt-profanity-check, a linear classifier of offensive English that ships with its weights.

It recognises words, not meaning: it finds profanity (AUC 0.99 on offensive tweets), not hatred without swear words (AUC
0.47 on HateCheck, which is chance). It is meant for machines without Detoxify's weights, and never a default.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorers.attempt import attempt
from scorers.contract import Document, Execution, ScoringError
from scorers.errors import UserError
from scorers.fingerprint import file_sha256, fingerprint, library_versions
from scorers.requirements import require
from scorers.text import TextOptions

# Hashes for alt-profanity-check 1.9.1. Its files are pickles, loaded when the package is imported.
SHA256 = {
    "model.joblib": "aeafc04849d4d93db4721cf30a86ebf22085595294b8a07d51918e7fa98f538b",
    "vectorizer.joblib": "19c5200dc6a41f026e0558e2f164f5fe8d8f58e502b46b37e4385037fcfa4831",
}
VERSION = "1.9.1"

_REVISION = 1
_BATCH = 4096


class LinearScorer:
    """The probability, between 0 and 1, that a sentence is offensive: finds swear words, not hatred without them."""

    Options = TextOptions
    main_option: str | None = None
    runs_on_gpu = False

    def __init__(self, name: str, options: TextOptions, execution: Execution) -> None:
        self.name = name
        self._options = options
        self._execution = execution
        self._predict = load()
        self.fingerprint = fingerprint(
            "linear",
            options.model_dump(mode="json"),
            revision=_REVISION,
            libraries=library_versions("alt-profanity-check", "scikit-learn", "scipy", "numpy"),
            files=SHA256,
        )

    @classmethod
    def check(cls, _options: TextOptions) -> None:
        """Raise `UserError` if something needed here is missing, without unpickling anything."""
        find_files()

    def applies(self, document: Document) -> bool:
        """Return whether the option `documents` selects the document."""
        return self._options.apply_to(document)

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        """Score all documents in one pass; they are rows of a sparse product, so none depends on another."""
        sentences = [sentence for document in documents for sentence in document.sentences()]
        try:
            scores = self._probabilities(sentences)
        except Exception:  # noqa: BLE001 - score each on its own to find the document that fails
            return [attempt(self._score_one, document, self._execution.deadline_s) for document in documents]
        cuts = np.cumsum([len(document.ends) for document in documents])[:-1]
        return list(np.split(scores, cuts)) if documents else []

    def _score_one(self, document: Document) -> NDArray[np.float32]:
        return self._probabilities(document.sentences())

    def _probabilities(self, sentences: list[str]) -> NDArray[np.float32]:
        scores = np.zeros(len(sentences), dtype=np.float32)
        for start in range(0, len(sentences), _BATCH):
            batch = sentences[start : start + _BATCH]
            scores[start : start + len(batch)] = self._predict(batch)
        return scores


def load() -> Any:
    """Return alt-profanity-check's `predict_prob`; check its files before the import that unpickles them.

    Raises:
        UserError: the package is missing, its files are not the known ones, or scikit-learn has another version.
    """
    find_files()
    with warnings.catch_warnings():
        # The package leaves its files for the garbage collector to close, which is harmless. Estimators pickled by
        # another version of scikit-learn are not.
        warnings.simplefilter("ignore", ResourceWarning)
        inconsistent = importlib.import_module("sklearn.exceptions").InconsistentVersionWarning
        warnings.simplefilter("error", inconsistent)
        try:
            return importlib.import_module("profanity_check").predict_prob
        except inconsistent:
            raise UserError(
                f"alt-profanity-check {VERSION} was made with scikit-learn {VERSION}, and another is installed: "
                f"pip install scikit-learn=={VERSION}"
            ) from None


def find_files() -> Path:
    """Find and check the folder of the package's pickles, without importing the package.

    Raises:
        UserError: the package is missing, or one of its files is missing or differs.
    """
    require("linear", "profanity_check", install=f"alt-profanity-check=={VERSION}")
    spec = importlib.util.find_spec("profanity_check")
    locations = spec.submodule_search_locations if spec else None
    folder = Path(next(iter(locations or ["profanity_check"]))) / "data"
    check_files(folder)
    return folder


def check_files(folder: Path) -> None:
    """Refuse files that are not those of the known version, before they are unpickled.

    Raises:
        UserError: a file is missing or differs.
    """
    for name, expected in SHA256.items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != expected:
            raise UserError(
                f"{path} is not the file of alt-profanity-check {VERSION} (its sha256 differs); it is not unpickled. "
                f"Install that version: pip install --force-reinstall --no-deps alt-profanity-check=={VERSION}"
            )
