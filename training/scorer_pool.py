"""Run a scorer in several processes, each of which builds it from its record.

The groups in which documents are scored do not depend on the number of processes, so neither do the scores.
"""

import os
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from pipeline.dataset.manifest import ScorerEntry
from scorers.contract import Document, Execution, Scorer, ScoringError
from scorers.doctor.machine import usable_cores
from scorers.errors import IncompleteError, UserError
from scorers.registry import ScorerSpec, build, runs_on_gpu

_GROUP = 64  # documents
# Seconds that processes must save: importing the libraries of a scorer takes some of each.
_LEAST_SAVED_S = 10.0
_MOST = 8  # processes, each of which may hold a gigabyte

Method = Literal["score", "locate"]


def usable_processes() -> int:
    """How many processes this one may keep busy: its cores, or fewer if OMP_NUM_THREADS gives it a share of them."""
    share = os.environ.get("OMP_NUM_THREADS", "")
    return min(usable_cores(), int(share)) if share.isdecimal() and int(share) else usable_cores()


class ScorerPool:
    """A scorer in this process, or in a pool of processes; a context manager.

    Args:
        name: of the scorer, and its column.
        entry: its record.
        scorer: built from the record in this process.
        processes: 1 for this process.
        execution: of the scorers that the processes build.
    """

    def __init__(
        self, name: str, entry: ScorerEntry, scorer: Any, processes: int, execution: Execution | None = None
    ) -> None:
        self.processes = processes
        self._record = name, entry.model_dump_json(), execution or Execution(), scorer.fingerprint
        self._scorer = scorer
        self._parallel = Parallel(n_jobs=processes)

    def __enter__(self) -> "ScorerPool":
        self._parallel.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._parallel.__exit__(*error)

    def call(self, method: Method, groups: Sequence[Sequence[Document]]) -> list[list[Any]]:
        """Return what a method of the scorer finds for each group of documents.

        Raises:
            IncompleteError: a process was killed.
        """
        if self.processes == 1:
            return [list(getattr(self._scorer, method)(documents)) for documents in groups]
        try:
            return list(self._parallel(delayed(_call)(*self._record, method, list(each)) for each in groups))
        except BrokenProcessPool as error:
            raise IncompleteError(
                f"A process that ran the scorer {self._record[0]!r} was killed, perhaps for lack of memory: "
                f"{self.processes} of them run at once, one per core available to phf. Run the same command again, on "
                "fewer cores (taskset) or with more memory."
            ) from error


class PooledScorer:
    """A scorer that scores many documents in several processes, where that saves more time than starting them takes."""

    def __init__(self, scorer: Scorer, entry: ScorerEntry, execution: Execution) -> None:
        self.name, self.fingerprint = scorer.name, scorer.fingerprint
        self._scorer, self._entry, self._execution = scorer, entry, execution

    def applies(self, document: Document) -> bool:
        """As the scorer."""
        return self._scorer.applies(document)

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        """As the scorer; the first groups, which show how long the others take, in this process."""
        groups = [documents[start : start + _GROUP] for start in range(0, len(documents), _GROUP)]
        found: list[list[NDArray[np.float32] | ScoringError]] = []
        began = time.process_time()  # unlike wall time, the same on a busy machine
        while len(found) < len(groups):
            left = len(groups) - len(found)
            processes = min(usable_processes(), _MOST, left)
            if found and processes > 1:
                seconds = (time.process_time() - began) / len(found) * left
                if seconds * (1 - 1 / processes) > _LEAST_SAVED_S:
                    with ScorerPool(self.name, self._entry, self._scorer, processes, self._execution) as pool:
                        found += pool.call("score", groups[len(found) :])
                    break
            found.append(self._scorer.score(groups[len(found)]))
        return [each for group in found for each in group]


def pooled(scorer: Scorer, entry: ScorerEntry, execution: Execution) -> Scorer:
    """The scorer, in several processes if it pays; as it is if it runs a network, which has batches of its own."""
    return scorer if runs_on_gpu(ScorerSpec(kind=entry.kind)) else PooledScorer(scorer, entry, execution)


def _call(
    name: str, entry: str, execution: Execution, fingerprint: str, method: Method, documents: list[Document]
) -> list[Any]:
    scorer = _scorer(name, entry, execution)
    if scorer.fingerprint != fingerprint:
        raise UserError(f"A library or a file of the scorer {name!r} changed while it ran. Run the same command again.")
    return list(getattr(scorer, method)(documents))


# Each process builds its own scorer once: some hold models, which are too large to send.
@lru_cache(maxsize=1)
def _scorer(name: str, entry: str, execution: Execution) -> Any:
    known = ScorerEntry.model_validate_json(entry)
    return build(name, ScorerSpec(kind=known.kind, **known.options), execution)
