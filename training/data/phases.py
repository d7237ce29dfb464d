"""The phases of a run: plain text first, then with preferences, then plain again, each on documents of its own."""

from dataclasses import dataclass
from typing import Any, Literal

from scorers.amounts import count_of
from scorers.errors import UserError
from training.config import ObjectiveConfig, as_written
from training.data.batches import Batch, Batches
from training.objectives import OBJECTIVES

PhaseName = Literal["plain", "preferences", "cooldown"]


@dataclass(frozen=True)
class Phase:
    """Steps of a run that see one kind of stream.

    Attributes:
        name: `plain` before the preferences start, `preferences` with the objective, `cooldown` without tags again.
        first, end: its steps, from 0, `end` exclusive.
        part: which documents it trains on, see `StreamOptions.part`; None where it is the only phase.
    """

    name: PhaseName
    first: int
    end: int
    part: tuple[float, float] | None = None

    @property
    def steps(self) -> int:
        """How many."""
        return self.end - self.first


@dataclass(frozen=True)
class PhasedSource(Batches):
    """Batches of each phase in turn; each begins with the first block of its own order.

    Attributes:
        phases: in order, without gaps.
        sources: of each phase.
        batch_size: of each of them.
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
    """Which phase a step is in; the last goes on for ever."""
    return sum(phase.end <= step for phase in phases[:-1])


def plan_phases(config: ObjectiveConfig, steps: int) -> tuple[Phase, ...]:
    """The phases of a run of `steps` steps. Of the documents each has the share that is asked for of the steps.

    Raises:
        UserError: the objective has nothing to start or to leave out, or the run is too short for its phases.
    """
    kind = OBJECTIVES[config.name]
    before, after = config.starts_at, config.cooldown
    if before and config.name == "mle" and config.mask_above is None:
        raise UserError("The objective mle has no preferences that could start later. Remove objective.starts_at.")
    if after and not kind.tags:
        raise UserError(f"The objective {config.name} has no tags to leave out at the end. Remove objective.cooldown.")
    if not (before or after):
        return (Phase("preferences", 0, steps),)
    start = max(1, round(as_written(before) * steps)) if before else 0
    end = steps - (max(1, round(as_written(after) * steps)) if after else 0)
    if start >= end:
        raise UserError(
            f"A run of {count_of(steps, 'step')} is too short for objective.starts_at={before:g} and "
            f"objective.cooldown={after:g}: no step is left for the objective. Raise training.num_tokens."
        )
    phases = (
        Phase("plain", 0, start, (0.0, before)),
        Phase("preferences", start, end, (before, 1.0 - after)),
        Phase("cooldown", end, steps, (1.0 - after, 1.0)),
    )
    return tuple(phase for phase in phases if phase.steps)
