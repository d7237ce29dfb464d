"""The child process of `isolation`: `python -m pipeline.labelling.workers.isolation_child DESCRIPTOR`."""

import ctypes
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from pipeline.corpus.records import Record
from pipeline.labelling.workers.isolation import Phase, Raised, Step, Task, describe_error
from pipeline.labelling.workers.label_records import SPLIT, label_records
from pipeline.labelling.workers.secrecy import discard_output, forbid_core_dumps
from pipeline.labelling.workers.worker import PartResult, UnitLabeller
from scorers.contract import Document, DocumentKind, Scorer, ScoringError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PR_SET_PDEATHSIG = 1


class _ReportingScorer:
    """A scorer that calls `report` before each call of the scorer that it wraps."""

    def __init__(self, scorer: Scorer, report: Callable[[], None]) -> None:
        self.name = scorer.name
        self.fingerprint = scorer.fingerprint
        self._scorer = scorer
        self._report = report

    def applies(self, document: Document) -> bool:
        self._report()
        return self._scorer.applies(document)

    def score(self, documents: Sequence[Document]) -> "list[NDArray[np.float32] | ScoringError]":
        self._report()
        return self._scorer.score(documents)


def main() -> None:
    """Run the one task that comes through the pipe."""
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    discard_output()
    forbid_core_dumps()
    # Die with the worker that waits for this process, even in the middle of native code.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    task: Task = connection.recv()
    try:
        connection.send(_run_task(task, connection.send))
    except Exception as error:  # noqa: BLE001 - the worker raises it
        connection.send(Raised(describe_error(error)))


def _run_task(task: Task, report: Callable[[Step], None]) -> PartResult:
    labeller = UnitLabeller(task.job, task.group)
    # Warm up: what scorers load with their first document must not count against the time of a record.
    kinds: tuple[DocumentKind, ...] = ("prose", "python")
    label_records([Record("", 0, "", "Two words.\n", "{}", kind, "") for kind in kinds], labeller.scorers)
    records = iter(labeller.read(task.unit))
    index = 0
    while True:
        report(Step(Phase.READ, index))
        record = next(records, None)
        if record is None:
            break
        if index >= task.first and isinstance(record, Record):
            _try(record, index, labeller, task, report)
        index += 1
    report(Step(Phase.TOGETHER))
    return labeller.label(task.unit, task.staged, task.known_errors)


def _try(record: Record, index: int, labeller: UnitLabeller, task: Task, report: Callable[[Step], None]) -> None:
    def report_column(column: str) -> None:
        report(Step(Phase.RECORD, index, record.source, record.position, column, len(record.text)))

    report_column(SPLIT)
    scorers = {
        column: _ReportingScorer(scorer, lambda column=column: report_column(column))  # type: ignore[misc]
        for column, scorer in labeller.scorers.items()
    }
    config = task.job.config
    label_records(
        [record],
        scorers,
        max_document_size=config.max_document_size,
        large_documents=config.large_documents,
        known_errors=task.known_errors,
    )


if __name__ == "__main__":
    main()
