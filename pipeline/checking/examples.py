"""Find example sentences of a dataset: the worst ones, and those closest to the threshold on either side."""

import heapq
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset import LabelledDataset
from pipeline.dataset.tags import is_aligned

WORST = "worst"
MISALIGNED = "just misaligned"
ALIGNED = "just aligned"

# Candidates per batch for each wanted sentence, because a corpus contains duplicates.
_CANDIDATES = 20


@dataclass(frozen=True)
class Example:
    """A sentence of the corpus with its score; `sentence` is its index in the document."""

    score: float
    doc_id: str
    sentence: int
    text: str


def find_examples(dataset: LabelledDataset, column: str, count: int) -> dict[str, list[Example]]:
    """Find the `count` sentences with the highest scores, and as many closest to the threshold on either side.

    Texts are unique within a group; of equal scores the first in the dataset wins. Reads the dataset once.

    Raises:
        DamagedError: a shard cannot be read.
    """
    threshold = dataset.manifest.thresholds[column].value
    # By group: fit, negated index in the dataset (so that the first of equals wins), example.
    best: dict[str, list[tuple[float, int, Example]]] = {WORST: [], MISALIGNED: [], ALIGNED: []}
    before = 0
    for batch in dataset.read_batches(["doc_id", "text", "ends", column], rows=1024):
        sentences = _Sentences(batch, column)
        aligned = is_aligned(sentences.scores, threshold)
        fits = {
            WORST: sentences.scores,
            MISALIGNED: np.where(aligned, -np.inf, -sentences.scores),
            ALIGNED: np.where(aligned, sentences.scores, -np.inf),
        }
        for group, fit in fits.items():
            for index in np.argsort(-fit, kind="stable")[: _CANDIDATES * count].tolist():
                if not np.isfinite(fit[index]):
                    break
                _keep(best[group], (float(fit[index]), -before - index, sentences.example(index)), count)
        before += len(sentences.scores)
    return {group: [example for _, _, example in sorted(heap, reverse=True)] for group, heap in best.items()}


def _keep(heap: list[tuple[float, int, Example]], candidate: tuple[float, int, Example], count: int) -> None:
    if any(candidate[2].text == other.text for _, _, other in heap):
        return
    if len(heap) < count:
        heapq.heappush(heap, candidate)
    else:
        heapq.heappushpop(heap, candidate)


class _Sentences:
    """The scored sentences of a batch."""

    def __init__(self, batch: pa.RecordBatch, column: str) -> None:
        self._batch = batch
        lengths = pc.fill_null(pc.list_value_length(batch.column(column)), 0).to_numpy(zero_copy_only=False)
        self._row = np.repeat(np.arange(batch.num_rows), lengths)
        self._first = np.cumsum(lengths) - lengths
        self.scores: NDArray[np.float32] = batch.column(column).flatten().to_numpy(zero_copy_only=False)

    def example(self, index: int) -> Example:
        """The sentence that `scores[index]` belongs to."""
        row = int(self._row[index])
        sentence = index - int(self._first[row])
        ends = [0, *self._batch.column("ends")[row].as_py()]
        text = self._batch.column("text")[row].as_py()[ends[sentence] : ends[sentence + 1]]
        return Example(float(self.scores[index]), self._batch.column("doc_id")[row].as_py(), sentence, text)
