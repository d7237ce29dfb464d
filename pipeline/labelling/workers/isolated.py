"""The child process of `isolation`: `python -m pipeline.labelling.workers.isolated DESCRIPTOR`."""

import ctypes
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from pipeline.corpus.records import Record
from pipeline.labelling.workers.isolation import Order, Phase, Raised, Step, brief
from pipeline.labelling.workers.label_records import SPLIT, label_records
from pipeline.labelling.workers.secrecy import forbid_core_dumps, silence
from pipeline.labelling.workers.worker import PartResult, UnitLabeller
from scorers.contract import Document, DocumentKind, Scorer, ScoringError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PR_SET_PDEATHSIG = 1


class _Announced:
    """A scorer that says so whenever it gets a document."""

    def __init__(self, scorer: Scorer, announce: Callable[[], None]) -> None:
        self.name = scorer.name
        self.fingerprint = scorer.fingerprint
        self._scorer = scorer
        self._announce = announce

    def applies(self, document: Document) -> bool:
        self._announce()
        return self._scorer.applies(document)

    def score(self, documents: Sequence[Document]) -> "list[NDArray[np.float32] | ScoringError]":
        self._announce()
        return self._scorer.score(documents)


def main() -> None:
    """Obey the one order that comes through the pipe."""
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    silence()
    forbid_core_dumps()
    # With the worker that waits for it, this process dies too, wherever it is.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    order: Order = connection.recv()
    try:
        connection.send(_obey(order, connection.send))
    except Exception as error:  # noqa: BLE001 - whatever it is, the worker passes it on
        connection.send(Raised(brief(error)))


def _obey(order: Order, tell: Callable[[Step], None]) -> PartResult:
    labeller = UnitLabeller(order.job, order.group)
    # What scorers load with their first document is no record's fault, and must not use up its time.
    kinds: tuple[DocumentKind, ...] = ("prose", "python")
    label_records([Record("", 0, "", "Two words.\n", "{}", kind, "") for kind in kinds], labeller.scorers)
    records = iter(labeller.read(order.unit))
    index = 0
    while True:
        tell(Step(Phase.READ, index))
        record = next(records, None)
        if record is None:
            break
        if index >= order.first and isinstance(record, Record):
            _try(record, index, labeller, order, tell)
        index += 1
    tell(Step(Phase.TOGETHER))
    return labeller.label(order.unit, order.staged, order.spared)


def _try(record: Record, index: int, labeller: UnitLabeller, order: Order, tell: Callable[[Step], None]) -> None:
    def announce(column: str) -> None:
        tell(Step(Phase.RECORD, index, record.source, record.position, column, len(record.text)))

    announce(SPLIT)
    scorers = {
        column: _Announced(scorer, lambda column=column: announce(column))  # type: ignore[misc]
        for column, scorer in labeller.scorers.items()
    }
    config = order.job.config
    label_records(
        [record],
        scorers,
        max_document_size=config.max_document_size,
        large_documents=config.large_documents,
        spared=order.spared,
    )


if __name__ == "__main__":
    main()
