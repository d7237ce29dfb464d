"""Skip batches, such as those of a loss spike: from a given step on, read later batches of the same order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from training.data.batches import Batch, Batches
from training.data.phases import PhasedSource


@dataclass(frozen=True)
class SkippingSource(Batches):
    """The batches of `source` without the skipped ones.

    Attributes:
        skips: steps, from 0, each with the number of batches to skip before it.
        batch_size: of the source.
    """

    source: Batches
    skips: tuple[tuple[int, int], ...]
    batch_size: int

    def part(self, step: int, begin: int, end: int) -> Batch:
        """See `Batches`."""
        return self.source.part(self._place(step), begin, end)

    def origin(self, step: int) -> dict[str, Any]:
        """See `Batches`."""
        return self.source.origin(self._place(step))

    def _place(self, step: int) -> int:
        return step + sum(batches for first, batches in self.skips if first <= step)


def skip_batches(batches: Batches, skips: Sequence[tuple[int, int]]) -> Batches:
    """Return the batches of a run without the skipped ones (see `SkippingSource`).

    In a run of phases, a skip only affects the phase that contains its step.
    """
    if not skips:
        return batches
    if not isinstance(batches, PhasedSource):
        return SkippingSource(batches, tuple(skips), batches.batch_size)
    sources = tuple(
        skip_batches(source, [(step - phase.first, count) for step, count in skips if phase.first <= step < phase.end])
        for phase, source in zip(batches.phases, batches.sources, strict=True)
    )
    return replace(batches, sources=sources)
