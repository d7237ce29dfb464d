"""A sweep from its specification to the page: check and prepare all runs, train, evaluate and compare them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from scorers.amounts import format_count
from scorers.errors import UserError
from scorers.printing import printable
from scorers.stored import read_stored
from training.disk import refuse_link, refuse_links, write_atomically, writing
from training.progress import StageProgress
from training.runs.folder import RunFolder
from training.runs.lock import sole_launch
from training.sweep.check import check_runs, horizon, is_compared, is_evaluated, is_swept, is_trained, prepare_runs
from training.sweep.config import SweepConfig, SweepRun, expand, words_of
from training.sweep.jobs import TRAINING, Job, Stage, State, run_jobs
from training.sweep.progress import SweepProgress
from training.sweep.slots import slots

REPORT_NAME, LOGS, COMPARISON = "sweep.json", "logs", "comparison"


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunState(_Stored):
    """The state of a run of a sweep.

    Attributes:
        name: of its folder.
        folder: the folder.
        objective, seed: of the run.
        values: its values of the grid, by dotted key.
        state: `finished` is trained and evaluated; `waiting` was not started; `stopped` can continue.
        step, steps: steps done, and of the whole run.
        reason: why it failed; empty if it did not.
        log: the output of its commands.
    """

    name: str
    folder: str
    objective: str
    seed: int
    values: dict[str, Any]
    state: State
    step: int
    steps: int
    reason: str = ""
    log: str


class SweepReport(_Stored):
    """`sweep.json`: the runs of a sweep when it last ended.

    Attributes:
        runs: their states.
        page: the page that compares them; None if it is not wanted or could not be made.
        compared: a hash of what the page was made from; None without a page.
        page_reason: why the page could not be made; empty if it could, or is not wanted.
        stopped: whether a signal ended the sweep.
    """

    runs: list[RunState]
    page: str | None = None
    compared: str | None = None
    page_reason: str = ""
    stopped: bool = False

    @property
    def unfinished(self) -> list[RunState]:
        """The runs that are not finished."""
        return [each for each in self.runs if each.state != "finished"]


@dataclass(frozen=True)
class RunsOfSweep:
    """The runs of a sweep that can be compared.

    Attributes:
        finished: their folders.
        left_out: a sentence that names the others, each with the reason; empty if there are none.
    """

    finished: list[Path]
    left_out: str = ""


def runs_of_sweep(folder: Path) -> RunsOfSweep | None:
    """Return the runs of a sweep that can be compared; None if the folder is not that of a sweep.

    Raises:
        UserError: the report of the sweep is damaged or of another version.
    """
    path = folder / REPORT_NAME
    if not path.is_file():
        return None
    try:
        report = SweepReport.model_validate_json(read_stored(path))
    except (OSError, ValidationError):
        raise UserError(
            f"{path} is damaged, or of another version of phf. Give the sweep's runs, such as {folder}/*-s*."
        ) from None
    # Names rather than the paths of then: the folder may have been moved.
    there = {each.name: each for each in folder.iterdir() if each.is_symlink() or each.is_dir()}
    finished: list[Path] = []
    others: list[str] = []
    for run in report.runs:
        if run.state != "finished":
            others.append(f"{run.name} ({run.state})")
        elif run.name not in there:
            others.append(f"{run.name} (missing)")
        elif there[run.name].is_symlink():
            others.append(f"{run.name} (a link)")
        else:
            finished.append(there[run.name])
    if not others:
        return RunsOfSweep(finished)
    left_out = f"{len(others):,} of {format_count(len(report.runs), 'run')} of the sweep {folder}"
    verb = "is" if len(others) == 1 else "are"
    return RunsOfSweep(finished, f"{left_out} {verb} left out: {printable(', '.join(others))}.")


@dataclass(frozen=True)
class Sweep:
    """A checked sweep."""

    config: SweepConfig
    runs: Sequence[SweepRun]
    slots: Sequence[Mapping[str, str]]

    def log(self, name: str) -> Path:
        """The log of a run's commands, or of the comparison."""
        return self.config.folder / LOGS / f"{name}.log"


def plan_sweep(config: SweepConfig) -> Sweep:
    """Expand a sweep, and check what can be checked without the data.

    Raises:
        UserError: a run's settings are wrong, or a folder holds something else; names the runs.
    """
    runs = expand(config)
    check_runs(runs)
    for name in (LOGS, COMPARISON):
        refuse_link(config.folder / name)
        refuse_links(config.folder / name)
    return Sweep(config, runs, slots(runs, config.at_once))


def run_sweep(sweep: Sweep, report: Callable[[str], None]) -> SweepReport:
    """Train, evaluate and compare the runs of a sweep; what is done already is kept.

    Args:
        sweep: from `plan_sweep`.
        report: called with a line if another sweep in the same folder must be waited for.

    Raises:
        UserError: the data or a folder's run do not fit the sweep; names the runs.
        IncompleteError: another sweep is running in the folder, or the disk is full.
    """
    folder = sweep.config.folder
    with sole_launch(RunFolder(folder), report):
        with StageProgress() as stages:
            prepare_runs(sweep.runs, stages)
        with writing(folder):
            (folder / LOGS).mkdir(parents=True, exist_ok=True)
        jobs = {run.name: _job(sweep, run) for run in sweep.runs}
        with SweepProgress({run.name: run for run in sweep.runs}) as progress:
            stopped = run_jobs([*jobs.values()], sweep.slots, progress)
            # Of the run itself: a comparison with a reference that fails takes no run off the page.
            evaluated = [run for run in sweep.runs if jobs[run.name].state == "finished"]
            later = _later_jobs(sweep, evaluated)
            jobs |= {job.name: job for job in later}
            if not stopped:
                stopped = run_jobs([job for job in later if job.state == "waiting"], sweep.slots, progress)
            states = [_state(sweep, run, jobs[run.name]) for run in sweep.runs]
            found = SweepReport(runs=states, stopped=stopped)
            if sweep.config.compare and not stopped:
                found = _compare(sweep, evaluated, found, progress)
        with writing(folder / REPORT_NAME):
            write_atomically(folder / REPORT_NAME, found.model_dump_json(indent=2) + "\n")
        return found


def _job(sweep: Sweep, run: SweepRun) -> Job:
    stages = [
        Stage(TRAINING, run.train, partial(is_trained, run)),
        Stage("evaluating", run.evaluate, partial(is_evaluated, run)),
    ]
    if run.reference is None:
        stages.append(_guidance(run))
    return Job(run.name, sweep.log(run.name), stages)


def _guidance(run: SweepRun) -> Stage:
    return Stage("sweeping guidance", run.sweep_guidance, partial(is_swept, run))


def _later_jobs(sweep: Sweep, evaluated: Sequence[SweepRun]) -> list[Job]:
    """Return the jobs of what needs the model of another run too."""
    there = {run.folder for run in evaluated}
    jobs = []
    for run in evaluated:
        if run.reference is not None:
            compare = Stage("comparing with the reference", run.compare_with, partial(is_compared, run))
            job = Job(run.name, sweep.log(run.name), [_guidance(run), compare])
            if run.reference not in there:
                job.state, job.reason = "failed", f"its reference {run.reference.path.name} did not finish"
            elif is_swept(run) and is_compared(run):
                job.state = "finished"
            jobs.append(job)
    return jobs


def _state(sweep: Sweep, run: SweepRun, job: Job) -> RunState:
    return RunState(
        name=run.name,
        folder=str(run.folder.path),
        objective=run.config.objective.name,
        seed=run.seed,
        values=dict(run.values),
        state=job.state,
        step=_step(run),
        steps=horizon(run).steps,
        reason=job.reason,
        log=str(sweep.log(run.name)),
    )


def _step(run: SweepRun) -> int:
    try:
        return run.folder.read_facts().step if run.folder.facts.is_file() else 0
    except UserError:
        # Damaged: the run has failed, with this as the reason.
        return 0


def _compare(sweep: Sweep, runs: Sequence[SweepRun], found: SweepReport, progress: SweepProgress) -> SweepReport:
    """Write the page about the runs that are evaluated, unless there is one about their current figures."""
    if not runs:
        return found
    output = sweep.config.folder / COMPARISON
    page, compared = output / "index.html", _fingerprint(runs)
    fresh = page.is_file() and compared == _compared_before(sweep.config.folder / REPORT_NAME)
    job = Job(COMPARISON, sweep.log(COMPARISON), (Stage("comparing", words_of(runs, output), lambda: fresh),))
    stopped = run_jobs([job], [dict(sweep.slots[0])], progress)
    if job.state == "finished":
        return found.model_copy(update={"page": str(page), "compared": compared})
    return found.model_copy(update={"page_reason": job.reason, "stopped": stopped or job.state == "stopped"})


def _fingerprint(runs: Sequence[SweepRun]) -> str:
    """Return a hash of the names, sizes and times of all files that a page shows figures of."""
    content = hashlib.sha256()
    for run in runs:
        folder = run.folder
        files = [folder.facts, folder.config, folder.metrics, *sorted(folder.evaluation.rglob("*"))]
        for path in files:
            if not path.is_file():
                continue
            facts = path.stat()
            content.update(f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return content.hexdigest()[:32]


def _compared_before(path: Path) -> str | None:
    try:
        return SweepReport.model_validate_json(read_stored(path)).compared
    except (OSError, UserError, ValidationError):
        # Missing, or not of this version: the page is written again.
        return None
