"""A scorer asked where it found what it scored: in this process, or on all cores where there is much to ask."""

import os
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from typing import Any

from joblib import Parallel, delayed

from pipeline.dataset.manifest import ScorerEntry
from scorers.contract import Document, Execution, ScoringError
from scorers.errors import IncompleteError
from scorers.findings import Finding, ShowsFindings
from scorers.registry import ScorerSpec, build

# A process pays where it has some seconds of work: it takes as long to import its libraries.
_SENTENCES_A_PROCESS = 1000

Findings = list[list[list[Finding]] | ScoringError]


class Asking:
    """Documents to their findings; a context manager, whose processes end with it.

    Args:
        column: the score column.
        entry: what the manifest says of its scorer.
        scorer: built from that, and proved the same by its fingerprint.
        sentences: about how many there are to ask about.
    """

    def __init__(self, column: str, entry: ScorerEntry, scorer: ShowsFindings, sentences: int) -> None:
        self.processes = max(1, min(len(os.sched_getaffinity(0)), sentences // _SENTENCES_A_PROCESS))
        self._spec = (column, entry.model_dump_json())
        self._scorer = scorer
        self._parallel = Parallel(n_jobs=self.processes)

    def __enter__(self) -> "Asking":
        self._parallel.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._parallel.__exit__(*error)

    def findings(self, groups: Sequence[list[Document]]) -> list[Findings]:
        """What was found in each group of documents: a document's findings by sentence, or why there are none.

        Raises:
            IncompleteError: a process was killed.
        """
        if self.processes == 1:
            return [list(self._scorer.findings(documents)) for documents in groups]
        try:
            return list(self._parallel(delayed(_ask)(*self._spec, documents) for documents in groups))
        except BrokenProcessPool as error:
            raise IncompleteError(
                f"A process that asked the scorer {self._spec[0]!r} where it found what it scored was killed, perhaps "
                f"for its memory: {self.processes} of them run at once, one for each core that this process may use. "
                "Run the same command again, on fewer cores (taskset) or with more memory."
            ) from error


def _ask(column: str, entry: str, documents: list[Document]) -> Findings:
    return list(_scorer(column, entry).findings(documents))


# One scorer lasts a process; none are sent, as some hold models.
@lru_cache(maxsize=1)
def _scorer(column: str, entry: str) -> Any:
    known = ScorerEntry.model_validate_json(entry)
    return build(column, ScorerSpec(kind=known.kind, **known.options), Execution())
