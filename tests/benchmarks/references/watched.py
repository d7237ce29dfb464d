"""What every labelling peer calls: one scorer function, which counts what it scores and dies of a poison record."""

import os
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorers.contract import Document, Execution, ScoringError
from scorers.linear import LinearScorer, load
from scorers.sentences import document
from scorers.text import TextOptions
from tests.benchmarks.references import sentences

# Names the file that grows by a byte per scored record.
PROGRESS = "PHF_PEERS_PROGRESS"
# If set, the peers split and score the way the libraries' own pages show, instead of as phf does.
PLAIN = "PHF_PEERS_PLAIN"
POISON = "\u2620 a record that kills its process \u2620"
# Records that a peer hands to the scorer at once.
BATCH = 256


class WatchedScorer(LinearScorer):
    """Kind `watched`: `linear`, as described above."""

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        die_of_poison(each.text for each in documents)
        results = super().score(documents)
        count(len(documents))
        return results


class Labeller:
    """Splits and scores texts; built once per process."""

    def __init__(self) -> None:
        if os.environ.get(PLAIN):
            self._pipeline, self._predict = sentences.pipeline(), load()
        else:
            self._scorer = WatchedScorer("toxicity", TextOptions(), Execution())

    def label(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Return for each text the ends of its sentences and their scores."""
        if os.environ.get(PLAIN):
            return self._label_plainly(texts)
        documents = [document(text) for text in texts]
        pairs = zip(documents, self._scorer.score(documents), strict=True)
        return [{"ends": each.ends.tolist(), "scores": np.asarray(scores).tolist()} for each, scores in pairs]

    def _label_plainly(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        die_of_poison(texts)
        labels = []
        for text, ends in zip(texts, sentences.ends(self._pipeline, texts), strict=True):
            parts = [text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)] if ends else []
            labels.append({"ends": ends, "scores": self._predict(parts).tolist() if parts else []})
        count(len(texts))
        return labels


def die_of_poison(texts: Iterable[str]) -> None:
    """Kill this process if a text is poison, as a library that crashes would."""
    if any(POISON in text for text in texts):
        os.kill(os.getpid(), signal.SIGKILL)


def count(records: int) -> None:
    """Note that so many records were scored."""
    # One write of an append is whole, whichever process makes it.
    with Path(os.environ[PROGRESS]).open("ab", buffering=0) as file:
        file.write(b"." * records)
