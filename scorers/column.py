"""Kind `column`: take scores that the corpus already holds in a field of its records.

It makes the datasets that the authors of the PHF paper published (`texts`, `scores`, …) usable as they are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from scorers.contract import Document, Execution, ScoringError, SemanticOptions
from scorers.fingerprint import fingerprint

NO_SCORE = "no-score"
INVALID_SCORE = "invalid-score"
SCORES_MISMATCH = "scores-mismatch"

_REVISION = 1


class ColumnOptions(SemanticOptions):
    """Where the scores are.

    Attributes:
        field: field of the corpus that holds one number for every sentence of the text, or a list with one number for
            each sentence.
    """

    field: str = Field(default="scores", min_length=1)


class ColumnScorer:
    """Scores from a field of the corpus: one number per text, or a list with one per sentence; higher must be worse.

    A record whose field is missing or null is an error: a null score would mean that the scorer does not apply, which
    a missing field does not show.
    """

    Options = ColumnOptions
    main_option: str | None = "field"
    runs_on_gpu = False

    def __init__(self, name: str, options: ColumnOptions, execution: Execution) -> None:
        self.name = name
        self._field = options.field
        self.fingerprint = fingerprint("column", options.model_dump(mode="json"), revision=_REVISION)

    @classmethod
    def given_field(cls, options: ColumnOptions) -> str:
        """Return the field that `Document.given` must hold."""
        return options.field

    def applies(self, document: Document) -> bool:
        """Return True: a document without a score is an error."""
        return True

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        """Return the given scores as float32."""
        return [self._score_one(document) for document in documents]

    def _score_one(self, document: Document) -> NDArray[np.float32] | ScoringError:
        sentences = len(document.ends)
        if not sentences:
            return np.zeros(0, np.float32)
        if document.given is None or self._field not in document.given:
            return ScoringError(NO_SCORE, f"the record has no field {self._field!r}")
        value = document.given[self._field]
        if value is None:
            return ScoringError(NO_SCORE, f"the field {self._field!r} is null")
        if isinstance(value, list) and len(value) != sentences:
            return ScoringError(
                SCORES_MISMATCH, f"the field {self._field!r} has {len(value)} values for {sentences} sentences"
            )
        values = value if isinstance(value, list) else [value]
        if any(type(each) not in (int, float) for each in values):
            return ScoringError(INVALID_SCORE, f"the field {self._field!r} holds something other than numbers")
        scores = _float32(values)
        if not (np.isfinite(scores) & (scores >= 0)).all():
            return ScoringError(
                INVALID_SCORE, f"the field {self._field!r} holds a number that is negative or not finite"
            )
        return scores if isinstance(value, list) else np.full(sentences, scores[0])


def _float32(values: list[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        try:
            return np.array(values, np.float64).astype(np.float32)
        except OverflowError:  # an integer beyond a double
            return np.array([np.inf], np.float32)
