"""Scorers without a model, some of which misbehave as their documents request."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from scorers.contract import Document, Execution, ScoringError, SemanticOptions

Results = list[NDArray[np.float32] | ScoringError]


class ToyScorer:
    """Scores a sentence by its share of all characters of the call, so that scores depend on the shapes of the batch.

    A document that contains `POISON` makes the call raise, and so does any while `broken`. `INVALID` documents get the
    results named by `invalid`, and `REFUSE` documents a ScoringError. The scorer does not apply to `SKIP` documents.
    """

    class Options(SemanticOptions):
        """No options."""

        scale: float = 1.0

    main_option: ClassVar[str | None] = "scale"
    runs_on_gpu: ClassVar[bool] = False

    def __init__(self, name: str, options: Options | None = None, execution: Execution | None = None) -> None:
        self.name = name
        self.execution = execution
        self.scale = options.scale if options else 1.0
        self.fingerprint = f"toy-{self.scale}"
        self.broken = False
        self.invalid: Any = None
        self.calls: list[int] = []

    def applies(self, document: Document) -> bool:
        """False for `SKIP`; raises for `ASK`."""
        if "ASK" in document.text:
            raise TypeError(document.text)
        return "SKIP" not in document.text

    def score(self, documents: Sequence[Document]) -> Results:
        """See the class."""
        self.calls.append(len(documents))
        if self.broken or any("POISON" in each.text for each in documents):
            raise ValueError("cannot bear " + " ".join(each.text for each in documents))
        total = sum(len(each.text) for each in documents)
        return [self._score_one(each, total) for each in documents]

    def _score_one(self, document: Document, total: int) -> NDArray[np.float32] | ScoringError:
        if "REFUSE" in document.text:
            return ScoringError("deadline", "took longer than 1 s")
        if "INVALID" in document.text:
            return self.invalid  # type: ignore[no-any-return]
        lengths = np.diff(document.ends, prepend=0)
        return (lengths * self.scale / total).astype(np.float32)


class ListlessScorer(ToyScorer):
    """Returns too few results, which violates the contract."""

    def score(self, documents: Sequence[Document]) -> Results:
        """Fewer results than documents if one contains `INVALID`."""
        return [
            result
            for each, result in zip(documents, super().score(documents), strict=True)
            if "INVALID" not in each.text
        ]


class TroubleScorer(ToyScorer):
    """Raises `error` if `unbearable` is true for the documents of a call; scores all other calls."""

    def __init__(self, unbearable: Callable[[Sequence[Document]], bool], error: BaseException | None = None) -> None:
        super().__init__("trouble")
        self.unbearable = unbearable
        self.error = error or ValueError("cannot bear it")

    def score(self, documents: Sequence[Document]) -> Results:
        """See the class."""
        if self.unbearable(documents):
            self.calls.append(len(documents))
            raise self.error
        return super().score(documents)
