"""Resume a run: unchanged, extended, or from an earlier step.

An extended run is the longer run from the last checkpoint up to which both are the same (`schedule.same_until`), with
the warm-up steps that it began with. What a run has beyond the checkpoint that it goes back to is set aside as a run of
its own, which can be evaluated and compared, but not resumed in place.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from scorers.amounts import format_count
from scorers.errors import UserError
from training.config import ResolvedConfig
from training.disk import output_error
from training.loop.branch import branch_facts, check_origin, check_start, recorded_warmup
from training.loop.resume import changed_settings, check_folder, check_same
from training.runs import checkpoints
from training.runs.facts import ResumptionFacts, RunFacts
from training.runs.folder import RunFolder
from training.runs.set_aside import set_aside
from training.schedule import Horizon, same_until, warmup_steps

# Settings that may change where a run goes back: they determine only the size of later updates.
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
class StartOptions:
    """How a run starts or resumes, apart from its settings.

    Attributes:
        from_step: step of the checkpoint to go back to; None for the newest.
        skip_batches: number of batches to leave out from there on.
        origin: folder and step of another run, whose checkpoint this run starts from.
    """

    from_step: int | None = None
    skip_batches: int = 0
    origin: tuple[str, int] | None = None


@dataclass(frozen=True)
class _ResumePoint:
    """Where a run resumes.

    Attributes:
        limit: last step to resume from; None for the newest checkpoint.
        exact: whether the user named that step, so that no earlier one will do.
        longer: whether the run is extended.
    """

    limit: int | None
    exact: bool
    longer: bool


def start(
    folder: RunFolder,
    config: ResolvedConfig,
    horizon: Horizon,
    facts: RunFacts,
    options: StartOptions,
    report: Callable[[str], None],
) -> tuple[bool, RunFacts]:
    """Start a run in a folder, or prepare the run there to resume. Called on rank 0, which holds the folder's lock.

    Args:
        folder: the folder of the run.
        config: the resolved configuration.
        horizon: the horizon of the run as it shall be now.
        facts: the facts of a new run.
        options: how the run starts or resumes.
        report: called with a line where the run is extended or goes back to an earlier step.

    Returns:
        Whether there was a run before, and its facts.

    Raises:
        UserError: the folder holds another run, or this run cannot be resumed in this point.
        IncompleteError: there is no room.
    """
    if not check_folder(folder):
        choose_resume_point(folder, config, horizon, options)
        if options.origin is not None:
            facts = branch_facts(facts, config, options.origin)
        _write(folder, config, facts)
        return False, facts
    then = folder.read_facts()
    if options.origin is not None:
        check_origin(folder, then, options.origin)
    changed = changed_settings(folder, config)
    point = check_resumable(folder, config, horizon, options, facts)
    warmup = recorded_warmup(folder, then)
    facts = facts.model_copy(
        update={
            "horizon": facts.horizon.model_copy(update={"warmup_steps": warmup}),
            **{name: getattr(then, name) for name in ("status", "step", "saved", "seconds", "origin")},
            **{name: getattr(then, name) for name in ("history", "skips")},
        }
    )
    if point.limit is not None:
        facts = _go_back(folder, facts, then, point, _find(folder, then, point), options, changed)
        report(_describe(folder, facts))
    if facts.status != "finished":
        _write(folder, config, facts)
    return True, facts


def check_resumable(
    folder: RunFolder, config: ResolvedConfig, horizon: Horizon, options: StartOptions, facts: RunFacts | None = None
) -> _ResumePoint:
    """Check that the run in a folder can resume under these settings, and return where.

    Args:
        folder: the folder of the run.
        config: the settings now, with what the data decide filled in.
        horizon: the horizon of the run as it shall be now.
        options: how the run resumes.
        facts: the facts of a new run; None to compare settings only.

    Raises:
        UserError: lists the settings and data that differ, or says why the run cannot resume.
    """
    then = folder.read_facts()
    point = choose_resume_point(folder, config, horizon, options, changed_settings(folder, config))
    may_change = {_TOKENS} if point.longer or horizon.steps == then.horizon.steps else set()
    may_change |= {*_MAY_CHANGE} if point.exact else set()
    if config.training.warmup_steps in (None, recorded_warmup(folder, then)):
        may_change.add("training.warmup_steps")
    check_same(folder, config, facts, may_change, _why_not_longer(then, config, horizon))
    return point


def choose_resume_point(
    folder: RunFolder,
    config: ResolvedConfig,
    horizon: Horizon,
    options: StartOptions,
    changed: dict[str, Any] | None = None,
) -> _ResumePoint:
    """Check, before any work, that the run can start or resume as asked, and return where.

    Args:
        folder: the folder of the run.
        config: the settings now.
        horizon: the horizon of the run as it shall be now.
        options: how the run starts or resumes.
        changed: settings that differ from those of the run; None where they are not known yet.

    Raises:
        UserError: it cannot; says why, and what can be done.
    """
    if not folder.facts.is_file():
        if options.from_step is not None:
            raise UserError(f"--from-step {options.from_step}: there is no run in {folder.path} to go back in.")
        if options.origin is not None:
            check_start(options.origin, horizon)
        return _ResumePoint(None, exact=False, longer=False)
    then = folder.read_facts()
    again = options.from_step is not None and _went_back(then, options) and not set(changed or {}) & {*_MAY_CHANGE}
    from_step = None if again else options.from_step
    there = checkpoints.steps(folder.checkpoints)
    if from_step is not None and from_step not in there:
        shown = checkpoints.describe_steps(there)
        raise UserError(f"--from-step {from_step}: {folder.path} has no checkpoint of that step; {shown}.")
    longer = horizon.steps > then.horizon.steps
    if not longer or _why_not_longer(then, config, horizon):
        return _ResumePoint(from_step, exact=from_step is not None, longer=False)
    until = same_until(config, then.horizon.steps, recorded_warmup(folder, then)) or 0
    if from_step is not None and from_step > until:
        raise UserError(
            f"--from-step {from_step}: a run of {format_count(horizon.steps, 'step')} differs from the one of "
            f"{then.horizon.steps:,} in {folder.path} from step {until:,} on. Give that step or an earlier one."
        )
    if there and there[0] > until:
        raise _too_late(folder, then, horizon, until)
    return _ResumePoint(until if from_step is None else from_step, exact=from_step is not None, longer=True)


def has_work_left(folder: RunFolder, horizon: Horizon, options: StartOptions) -> bool:
    """Whether there is anything left to do: a finished run with its model has nothing, unless extended or rewound."""
    if not folder.facts.is_file():
        return True
    facts = folder.read_facts()
    finished = facts.status == "finished" and folder.model.is_dir()
    return not finished or horizon.steps > facts.horizon.steps or options.from_step is not None


def initial_steps(folder: RunFolder) -> int | None:
    """The planned number of steps of the run in a folder when it started; None where there is no run."""
    if not folder.facts.is_file():
        return None
    facts = folder.read_facts()
    return facts.history[0].steps[0] if facts.history else facts.horizon.steps


def with_warmup(horizon: Horizon, config: ResolvedConfig, facts: RunFacts) -> Horizon:
    """The horizon with the warm-up that the run started with."""
    warmup = facts.horizon.warmup_steps
    warmup = warmup_steps(config.training, horizon.steps) if warmup is None else warmup
    return replace(horizon, warmup=warmup, same_until=same_until(config, horizon.steps, warmup))


def _describe(folder: RunFolder, facts: RunFacts) -> str:
    last = facts.history[-1]
    line = f"{folder.path} resumes {last.description}."
    if last.set_aside is not None:
        line += (
            f" Its later part, up to step {last.reached:,}, is now a run of its own in {folder.path / last.set_aside}: "
            "delete it when you no longer need it."
        )
    return line


def _why_not_longer(then: RunFacts, config: ResolvedConfig, horizon: Horizon) -> str | None:
    schedule = config.training.schedule
    if horizon.steps <= then.horizon.steps or schedule in ("constant", "wsd"):
        return None
    return (
        f"It cannot be extended: under training.schedule={schedule} the learning rate of every step depends on "
        f"the number of steps ({then.horizon.steps:,} in the run, {horizon.steps:,} now). Only runs with the schedule "
        "constant or wsd can be extended. Another run can start from a checkpoint of this one: --init-from and --step."
    )


def _too_late(folder: RunFolder, then: RunFacts, horizon: Horizon, until: int) -> UserError:
    phases = len(then.phases) > 1 and then.phases[1].first_step == until
    what = f"the phase {then.phases[1].name!r} began" if phases else "its learning rate began to decay"
    return UserError(
        f"{folder.path} cannot be extended to {format_count(horizon.steps, 'step')}: {what} after step {until:,}, and "
        "there is no intact checkpoint up to that step. One is kept where training.save_every is not 0; "
        "training.keep_every keeps more. Train the longer run into another --output."
    )


def _went_back(then: RunFacts, options: StartOptions) -> bool:
    """Whether the run has already gone back in this point, so that the same command just resumes it."""
    last = next((each for each in reversed(then.history) if each.asked), None)
    return last is not None and (last.from_step, last.skipped_batches) == (options.from_step, options.skip_batches)


def _find(folder: RunFolder, then: RunFacts, point: _ResumePoint) -> int:
    """The step of the intact checkpoint to resume from; the first step of the run where it has no checkpoint yet."""
    limit = point.limit or 0
    there = [step for step in checkpoints.steps(folder.checkpoints) if step <= limit]
    for step in reversed(there):
        found = checkpoints.verify(checkpoints.checkpoint_path(folder.checkpoints, step))
        if isinstance(found, checkpoints.Checkpoint):
            return step
        if point.exact:
            raise UserError(f"--from-step {step}: the checkpoint {found.path} is damaged: {found.reason}.")
    if there or then.saved or (then.saved is None and then.step):
        raise UserError(f"No checkpoint in {folder.checkpoints} up to step {limit:,} is intact. Restore one of them.")
    return 0 if then.origin is None else then.origin.step


def _go_back(
    folder: RunFolder,
    facts: RunFacts,
    then: RunFacts,
    point: _ResumePoint,
    step: int,
    options: StartOptions,
    changed: dict[str, Any],
) -> RunFacts:
    """Set aside what the run has beyond a step, and return the facts with which it resumes there."""
    place = set_aside(folder, then, step, figures_too=point.exact)
    went_on = ResumptionFacts(
        from_step=step,
        reached=then.step,
        asked=point.exact,
        steps=(then.horizon.steps, facts.horizon.steps),
        skipped_batches=options.skip_batches if point.exact else 0,
        changed={key: value for key, value in changed.items() if key in _MAY_CHANGE},
        set_aside=place,
    )
    skips = facts.skips
    if point.exact:
        # Batches left out beyond the step belong to the part that is set aside.
        skips = [each for each in skips if each[0] < step]
        skips += [(step, options.skip_batches)] if options.skip_batches else []
    return facts.model_copy(
        update={
            "status": "running",
            "step": step,
            "saved": step if step in checkpoints.steps(folder.checkpoints) else 0,
            "history": [*facts.history, went_on],
            "skips": skips,
        }
    )


def _write(folder: RunFolder, config: ResolvedConfig, facts: RunFacts) -> None:
    try:
        folder.write_config(config)
        folder.write_facts(facts)
    except OSError as error:
        raise output_error(folder.path, error) from error
