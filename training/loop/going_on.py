"""How a run that is there goes on: as it was, longer, or from an earlier step; and what becomes of what lay beyond.

An extended run is the longer run, from the last checkpoint up to which both do the same (`schedule.same_until`), with
the steps of warm-up that it began with. What lies beyond the checkpoint that a run goes back to is set aside as a run
of its own, so that it can be evaluated and compared, and is never gone on from.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from scorers.amounts import count_of
from scorers.errors import UserError
from training.config import TrainConfig
from training.disk import output_error
from training.loop.branch import begun, check_origin, check_start, recorded_warmup
from training.loop.resume import changed_settings, check_folder, check_same
from training.runs import checkpoints
from training.runs.aside import set_aside
from training.runs.folder import RunFacts, RunFolder, WentOnFacts
from training.schedule import Horizon, same_until, warmup_steps

# What may change where a run goes back: how large its updates are from there on.
_MAY_CHANGE = (
    "training.learning_rate",
    "training.min_learning_rate_ratio",
    "training.weight_decay",
    "training.adam_beta1",
    "training.adam_beta2",
    "training.adam_epsilon",
    "training.gradient_clipping",
    "training.skip_sigmas",
)
_TOKENS = "training.num_tokens"


@dataclass(frozen=True)
class Asked:
    """What a command asks of a run besides its settings.

    Attributes:
        from_step: of the checkpoint to go back to; None for the newest.
        skip_batches: batches that are left out from there on.
        origin: the folder of another run and a step of it, with whose checkpoint this one begins.
    """

    from_step: int | None = None
    skip_batches: int = 0
    origin: tuple[str, int] | None = None


@dataclass(frozen=True)
class _Way:
    """Where a run goes on: its newest checkpoint (None), or at `limit` or before, and exactly there where `asked`."""

    limit: int | None
    asked: bool
    longer: bool


def start(
    folder: RunFolder,
    config: TrainConfig,
    horizon: Horizon,
    facts: RunFacts,
    asked: Asked,
    report: Callable[[str], None],
) -> tuple[bool, RunFacts]:
    """Begin a run in a folder, or make that which is there ready to go on. Rank 0 calls it, and holds the folder.

    Args:
        folder: of the run.
        config: with everything filled in.
        horizon: of the run as it is to be.
        facts: of a run that begins.
        asked: see there.
        report: called with a line where the run goes on longer, or from an earlier step.

    Returns:
        Whether there was a run before, and its facts.

    Raises:
        UserError: the folder holds another run, or this one cannot go on so; IncompleteError where there is no room.
    """
    if not check_folder(folder):
        check_way(folder, config, horizon, asked)
        if asked.origin is not None:
            facts = begun(facts, config, asked.origin)
        _write(folder, config, facts)
        return False, facts
    then = folder.read_facts()
    if asked.origin is not None:
        check_origin(folder, then, asked.origin)
    changed = changed_settings(folder, config)
    way = check_way(folder, config, horizon, asked, changed)
    may_change = {_TOKENS} if way.longer or horizon.steps == then.horizon.steps else set()
    may_change |= {*_MAY_CHANGE} if way.asked else set()
    warmup = recorded_warmup(folder, then)
    if config.training.warmup_steps in (None, warmup):
        may_change.add("training.warmup_steps")
    check_same(folder, config, facts, may_change, _why_not_longer(then, config, horizon))
    facts = facts.model_copy(
        update={
            "horizon": facts.horizon.model_copy(update={"warmup_steps": warmup}),
            **{name: getattr(then, name) for name in ("status", "step", "saved", "seconds", "origin")},
            **{name: getattr(then, name) for name in ("history", "skips")},
        }
    )
    if way.limit is not None:
        facts = _go_back(folder, facts, then, way, _find(folder, then, way), asked, changed)
        report(_describe(folder, facts))
    if facts.status != "finished":
        _write(folder, config, facts)
    return True, facts


def check_way(
    folder: RunFolder, config: TrainConfig, horizon: Horizon, asked: Asked, changed: dict[str, Any] | None = None
) -> _Way:
    """Refuse what a run cannot do, as far as it shows before any work.

    Args:
        folder: of the run.
        config: the settings now.
        horizon: of the run as it is to be.
        asked: see there.
        changed: settings that are not those of the run; None where they are not known yet.

    Raises:
        UserError: says why, and what can be done.
    """
    if not folder.facts.is_file():
        if asked.from_step is not None:
            raise UserError(f"--from-step {asked.from_step}: there is no run in {folder.path} that could go back.")
        if asked.origin is not None:
            check_start(asked.origin, horizon)
        return _Way(None, asked=False, longer=False)
    then = folder.read_facts()
    again = asked.from_step is not None and _went_back(then, asked) and not set(changed or {}) & {*_MAY_CHANGE}
    from_step = None if again else asked.from_step
    there = checkpoints.steps(folder.checkpoints)
    if from_step is not None and from_step not in there:
        shown = checkpoints.describe_steps(there)
        raise UserError(f"--from-step {from_step}: {folder.path} has no checkpoint of that step; {shown}.")
    longer = horizon.steps > then.horizon.steps
    if not longer or _why_not_longer(then, config, horizon):
        return _Way(from_step, asked=from_step is not None, longer=False)
    until = same_until(config, then.horizon.steps, recorded_warmup(folder, then)) or 0
    if from_step is not None and from_step > until:
        raise UserError(
            f"--from-step {from_step}: a run of {count_of(horizon.steps, 'step')} is another than that of "
            f"{then.horizon.steps:,} in {folder.path} from step {until:,} on. Give a step up to that."
        )
    if there and there[0] > until:
        raise _too_late(folder, then, horizon, until)
    return _Way(until if from_step is None else from_step, asked=from_step is not None, longer=True)


def is_to_go_on(folder: RunFolder, horizon: Horizon, asked: Asked) -> bool:
    """Whether there is anything to do: not for a finished run with its model, unless more is asked of it."""
    if not folder.facts.is_file():
        return True
    facts = folder.read_facts()
    finished = facts.status == "finished" and folder.model.is_dir()
    return not finished or horizon.steps > facts.horizon.steps or asked.from_step is not None


def first_steps(folder: RunFolder) -> int | None:
    """Of how many steps the run in a folder was to be when it began; None where there is none."""
    if not folder.facts.is_file():
        return None
    facts = folder.read_facts()
    return facts.history[0].steps[0] if facts.history else facts.horizon.steps


def settled(horizon: Horizon, config: TrainConfig, facts: RunFacts) -> Horizon:
    """The horizon with what its run keeps of its beginning."""
    warmup = facts.horizon.warmup_steps
    warmup = warmup_steps(config.training, horizon.steps) if warmup is None else warmup
    return replace(horizon, warmup=warmup, same_until=same_until(config, horizon.steps, warmup))


def _describe(folder: RunFolder, facts: RunFacts) -> str:
    last = facts.history[-1]
    line = f"{folder.path} goes on {last.description}."
    if last.set_aside is not None:
        line += (
            f" What it had beyond, up to step {last.reached:,}, is in {folder.path / last.set_aside}, a run of its own "
            "that is never gone on from here: delete it when you no longer need it."
        )
    return line


def _why_not_longer(then: RunFacts, config: TrainConfig, horizon: Horizon) -> str | None:
    schedule = config.training.schedule
    if horizon.steps <= then.horizon.steps or schedule in ("constant", "wsd"):
        return None
    return (
        f"It cannot be made longer: under training.schedule={schedule} the learning rate of every step follows from "
        f"how many there are ({then.horizon.steps:,} in the run, {horizon.steps:,} now). A run that is to be extended "
        "has the schedule constant or wsd. Another run can begin with a checkpoint of this one: --init-from and --step."
    )


def _too_late(folder: RunFolder, then: RunFacts, horizon: Horizon, until: int) -> UserError:
    phases = len(then.phases) > 1 and then.phases[1].first_step == until
    what = f"the phase {then.phases[1].name!r} began" if phases else "its learning rate began to decay"
    return UserError(
        f"{folder.path} cannot be extended to {count_of(horizon.steps, 'step')}: {what} after step {until:,}, and "
        "there is no whole checkpoint from before. One is kept for that where training.save_every is not 0, and "
        "training.keep_every keeps more. Train the longer run into another --output."
    )


def _went_back(then: RunFacts, asked: Asked) -> bool:
    """Whether the run has gone back so already: the same command goes on then, however often it is given."""
    last = next((each for each in reversed(then.history) if each.asked), None)
    return last is not None and (last.from_step, last.skipped_batches) == (asked.from_step, asked.skip_batches)


def _find(folder: RunFolder, then: RunFacts, way: _Way) -> int:
    """The step of the checkpoint to go on from, which is whole; for a run that has none yet, that it begins with."""
    limit = way.limit or 0
    there = [step for step in checkpoints.steps(folder.checkpoints) if step <= limit]
    for step in reversed(there):
        found = checkpoints.verify(checkpoints.checkpoint_path(folder.checkpoints, step))
        if isinstance(found, checkpoints.Checkpoint):
            return step
        if way.asked:
            raise UserError(f"--from-step {step}: the checkpoint {found.path} is damaged: {found.reason}.")
    if there or then.saved or (then.saved is None and then.step):
        raise UserError(f"No checkpoint in {folder.checkpoints} up to step {limit:,} is whole. Restore one of them.")
    return 0 if then.origin is None else then.origin.step


def _go_back(
    folder: RunFolder, facts: RunFacts, then: RunFacts, way: _Way, step: int, asked: Asked, changed: dict[str, Any]
) -> RunFacts:
    """The facts of a run that goes on from a step; what lay beyond is set aside."""
    place = set_aside(folder, then, step, figures_too=way.asked)
    went_on = WentOnFacts(
        from_step=step,
        reached=then.step,
        asked=way.asked,
        steps=(then.horizon.steps, facts.horizon.steps),
        skipped_batches=asked.skip_batches if way.asked else 0,
        changed={key: value for key, value in changed.items() if key in _MAY_CHANGE},
        set_aside=place,
    )
    skips = facts.skips
    if way.asked:
        # What was left out from there on was of the time that is set aside.
        skips = [each for each in skips if each[0] < step]
        skips += [(step, asked.skip_batches)] if asked.skip_batches else []
    return facts.model_copy(
        update={
            "status": "running",
            "step": step,
            "saved": step if step in checkpoints.steps(folder.checkpoints) else 0,
            "history": [*facts.history, went_on],
            "skips": skips,
        }
    )


def _write(folder: RunFolder, config: TrainConfig, facts: RunFacts) -> None:
    try:
        folder.write_config(config)
        folder.write_facts(facts)
    except OSError as error:
        raise output_error(folder.path, error) from error
