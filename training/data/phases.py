"""The phases of a run: plain text, then preferences, then a cooldown without tags, each on its own documents."""

from dataclasses import dataclass
from typing import Any, Literal

from scorers.amounts import format_count
from scorers.errors import UserError
from training.config import ObjectiveConfig, as_written
from training.data.batches import Batch, Batches
from training.objectives import OBJECTIVES

PhaseName = Literal["plain", "preferences", "cooldown"]


@dataclass(frozen=True)
class Phase:
    """Consecutive steps of a run that read one kind of stream.

    Attributes:
        name: `plain` before the preferences start, `preferences` with the objective, `cooldown` without tags.
        first, end: its steps, from 0, `end` exclusive.
        part: the documents it trains on, see `StreamOptions.part`; None if it is the only phase.
    """

    name: PhaseName
    first: int
    end: int
    part: tuple[float, float] | None = None

    @property
    def steps(self) -> int:
        """The number of steps."""
        return self.end - self.first


@dataclass(frozen=True)
class PhasedSource(Batches):
    """Batches of each phase in turn; each phase begins with the first block of its own order.

    Attributes:
        phases: in order, without gaps.
        sources: one per phase.
        batch_size: the same for all phases.
    """

    phases: tuple[Phase, ...]
    sources: tuple[Batches, ...]
    batch_size: int

    def part(self, step: int, begin: int, end: int) -> Batch:
        """See `Batches`."""
        index = phase_at(self.phases, step)
        return self.sources[index].part(step - self.phases[index].first, begin, end)

    def origin(self, step: int) -> dict[str, Any]:
        """See `Batches`."""
        index = phase_at(self.phases, step)
        phase = self.phases[index]
        return {"phase": phase.name, **self.sources[index].origin(step - phase.first)}


def phase_at(phases: tuple[Phase, ...], step: int) -> int:
    """Return the index of the phase that contains a step; the last phase never ends."""
    return sum(phase.end <= step for phase in phases[:-1])


def plan_phases(config: ObjectiveConfig, steps: int) -> tuple[Phase, ...]:
    """Divide a run of `steps` steps into phases. Each phase's share of the documents equals its share of the steps.

    Raises:
        UserError: `starts_at` or `cooldown` has no effect on the objective, or the run is too short for its phases.
    """
    kind = OBJECTIVES[config.name]
    before, after = config.starts_at, config.cooldown
    if before and config.name == "mle" and config.mask_above is None and config.hide_above is None:
        raise UserError("The objective mle has no preferences that could start later. Remove objective.starts_at.")
    if after and not kind.tags:
        raise UserError(f"The objective {config.name} has no tags to leave out at the end. Remove objective.cooldown.")
    if not (before or after):
        return (Phase("preferences", 0, steps),)
    start = max(1, round(as_written(before) * steps)) if before else 0
    end = steps - (max(1, round(as_written(after) * steps)) if after else 0)
    if start >= end:
        raise UserError(
            f"A run of {format_count(steps, 'step')} is too short for objective.starts_at={before:g} and "
            f"objective.cooldown={after:g}: no step is left for the objective. Raise training.num_tokens."
        )
    phases = (
        Phase("plain", 0, start, (0.0, before)),
        Phase("preferences", start, end, (before, 1.0 - after)),
        Phase("cooldown", end, steps, (1.0 - after, 1.0)),
    )
    return tuple(phase for phase in phases if phase.steps)
