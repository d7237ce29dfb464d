"""The plan of a job: the fingerprints of its inputs and the units of the corpus, independent of the workers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.inputs import Source
from pipeline.corpus.records import Quarantined
from pipeline.dataset.manifest import LeftOut, SourceEntry


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a source: bytes `[start, stop)` of a plain `.jsonl` file, or records `[start, stop)` of any other."""

    source: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Unit:
    """The smallest piece of work that is committed or lost."""

    index: int
    slices: tuple[Slice, ...]

    @property
    def name(self) -> str:
        """The name of the unit in the output folder."""
        return f"{self.index:08d}"


class Units(Sequence[Unit]):
    """The units of a plan, stored in columns: about forty bytes per unit.

    Args:
        first: int64 [units + 1]; unit i has the slices `first[i]` to `first[i + 1] - 1`.
        slices: int64 [slices, 3]; source, start and stop of each slice.
    """

    def __init__(self, first: NDArray[np.int64], slices: NDArray[np.int64]) -> None:
        self.first = first
        self.slices = slices

    @classmethod
    def of(cls, units: Iterable[Sequence[tuple[int, int, int]]]) -> "Units":
        """Build units from the slices of each, as (source, start, stop)."""
        first = [0]
        slices: list[tuple[int, int, int]] = []
        for unit in units:
            slices += unit
            first.append(len(slices))
        return cls(np.array(first, np.int64), np.array(slices, np.int64).reshape(-1, 3))

    def __len__(self) -> int:
        return len(self.first) - 1

    @overload
    def __getitem__(self, index: int) -> Unit: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Unit]: ...

    def __getitem__(self, index: int | slice) -> Unit | Sequence[Unit]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        rows = self.slices[self.first[index] : self.first[index + 1]].tolist()
        return Unit(index, tuple(Slice(*row) for row in rows))

    def __iter__(self) -> Iterator[Unit]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Units):
            return NotImplemented
        return np.array_equal(self.first, other.first) and np.array_equal(self.slices, other.slices)

    __hash__ = None  # type: ignore[assignment]

    def then(self, other: "Units", sources: int) -> "Units":
        """Append the units of another plan, whose sources follow the `sources` of this one."""
        moved = other.slices + np.array([sources, 0, 0])
        return Units(
            np.concatenate([self.first, other.first[1:] + len(self.slices)]), np.concatenate([self.slices, moved])
        )


@dataclass(frozen=True)
class Plan:
    """The sources of a job and the units that they are cut into.

    Attributes:
        sources: the sources in order.
        entries: their fingerprints, in the same order.
        units: cover every record once, in order; empty if no source holds a record.
        cut: one entry for each source that ends early.
        left_out: the files among the inputs that are not read.
    """

    sources: list[Source]
    entries: list[SourceEntry]
    units: Units
    cut: list[Quarantined] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def records(self) -> int:
        """The number of records of all sources, including those that will be quarantined."""
        return sum(entry.records for entry in self.entries)

    def then(self, other: "Plan") -> "Plan":
        """Append the plan of other sources."""
        return Plan(
            self.sources + other.sources,
            self.entries + other.entries,
            self.units.then(other.units, len(self.sources)),
            self.cut + other.cut,
            other.left_out,  # it was planned from the inputs of both
        )
