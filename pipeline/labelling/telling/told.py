"""What is told of a run beside what the scheduler tells, and how several are told at once."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.corpus.plan import Unit
from pipeline.labelling.scheduling.observing import Observer
from pipeline.labelling.workers.worker import PartResult
from pipeline.units.records import UnitRecord

if TYPE_CHECKING:
    from pipeline.labelling.telling.progress import Progress


class RunObserver(Observer):
    """An `Observer` that the driver tells of its own part as well."""

    def unit_committed(self, unit: Unit, record: UnitRecord, parts: Sequence[PartResult]) -> None:
        """A unit has its commit record, and its parts are in place."""

    def ticked(self, progress: "Progress") -> None:
        """How things stand; told about once a second."""


class Told(RunObserver):
    """Tells several observers, in order, all that it is told."""

    def __init__(self, *observers: RunObserver) -> None:
        for name in dir(RunObserver):
            if not name.startswith("_"):
                setattr(self, name, _each([getattr(observer, name) for observer in observers]))


def _each(methods: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def tell(*args: Any, **kwargs: Any) -> None:
        for method in methods:
            method(*args, **kwargs)

    return tell
