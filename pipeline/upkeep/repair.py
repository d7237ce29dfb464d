"""`phf repair`: find damage and repair it with the least work.

Derived files are derived again: the manifest and the card from the record of their generation; that record, the shards
and the ledger from the scored units; segments from commit records and vice versa; the plan from the inputs. Only scores
cannot be derived: a unit with a damaged part is labelled again. A repair that was interrupted at any step is resumed by
the same command.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pipeline.checking.problems import Problem
from pipeline.checking.unit_checker import UnitDamage
from pipeline.checking.verify import Examination, examine
from pipeline.config import LabelExecution
from pipeline.job.epoch import Epoch
from pipeline.job.record import StoredJob, load_job
from pipeline.job.unit_store import UNITS
from pipeline.labelling.monitoring.console import Reporter
from pipeline.labelling.run import NOTHING_LOST
from pipeline.sealing.extent import UnfinishedStep, unfinished
from pipeline.sealing.generations import generations
from pipeline.storage.base import Storage
from pipeline.storage.failures import storage_failures
from pipeline.storage.open import open_storage
from pipeline.upkeep.repair_job import repair_job
from pipeline.upkeep.repair_sealed import repair_dataset
from pipeline.upkeep.repair_steps import Repairs, Step
from pipeline.upkeep.repair_units import repair_units
from scorers.errors import UserError
from scorers.shell import phf
from scorers.stopping import stoppable


@dataclass(frozen=True)
class Repaired:
    """The result of a repair.

    Attributes:
        uri: the dataset.
        problems: the problems found at the start.
        done: the steps taken, or that would be taken without `dry_run`.
        left: the problems that remain, or would remain.
        dry_run: whether nothing was changed.
        generation: the generation of the dataset afterwards; None if it is not sealed.
        unfinished: the unfinished steps, which other commands resume.
    """

    uri: str
    problems: Sequence[Problem]
    done: Sequence[Step]
    left: Sequence[Problem]
    dry_run: bool
    generation: int | None
    unfinished: tuple[UnfinishedStep, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no problem remains, or would remain."""
        return not self.left

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {
            "dataset": self.uri,
            "ok": self.ok,
            "dry_run": self.dry_run,
            "problems": [{"path": each.path, "what": each.what} for each in self.problems],
            "done": [{"path": each.path, "what": each.what} for each in self.done],
            "left": [{"path": each.path, "what": each.what} for each in self.left],
            "generation": self.generation,
            "unfinished": [str(step) for step in self.unfinished],
        }


def repair(uri: str, execution: LabelExecution, reporter: Reporter, *, dry_run: bool = False) -> Repaired:
    """Repair a dataset that has its job, sealed or still being labelled. Call it in the main thread.

    Args:
        uri: the output of `phf label`.
        execution: how to run units that must be labelled again.
        reporter: shows the progress.
        dry_run: only report what would be done.

    Raises:
        UserError: there is no dataset or job, or it cannot be read.
        IncompleteError: a disk or store failed.
        StoppedError: stopped by a signal or a newer driver; the same command resumes.
    """
    storage = open_storage(uri)
    with stoppable(NOTHING_LOST), storage_failures(storage):
        has_units = bool(storage.children(UNITS))
        check = partial(examine, storage, uri, unsealed=has_units, progress=partial(reporter.measure, "Checking"))
        examined = check()
        problems = examined.report.problems
        if not problems:
            return _result(storage, uri, problems, Repairs(storage, None), [], dry_run=dry_run)
        if not has_units:
            storage.refuse_links()  # a folder that is a link would be missing from `children`
            raise UserError(
                f"{uri} is damaged, and it is a copy without the scored units (units/, job/) that a repair needs. "
                "Copy it again from where it was labelled."
            )
        repairs = Repairs(storage, None if dry_run else Epoch.claim(storage))
        if examined.job is not None and examined.job.damaged:
            repair_job(repairs, examined.job, examined.report.manifest, reporter)
            if not dry_run and not repairs.left:
                # Which units must exist is known only from the job.
                examined = check()
        if dry_run and examined.job is not None and examined.job.damaged and not repairs.left:
            listed = {step.path for step in repairs.done}
            later = [each for each in problems if each.path not in listed and not each.stray]
            repairs.done += [Step(each.path, "repaired once the job is; how is known only then") for each in later]
        else:
            job = load_job(storage) if examined.job is not None and not examined.job.damaged else None
            _repair(repairs, job, examined, execution, reporter)
        if repairs.epoch is not None:
            storage.delete_folder(repairs.epoch.staging)
        listed = {each.path for each in repairs.left}
        now = [each for each in problems if each.stray] if dry_run else check().report.problems
        left = repairs.left + [_with_remedy(uri, each) for each in now if each.path not in listed]
        if not examined.sealed:
            # Before sealing, files of uncommitted units are not problems.
            left = [each for each in left if not each.stray]
        return _result(storage, uri, problems, repairs, left, dry_run=dry_run)


def _repair(
    repairs: Repairs,
    job: StoredJob | None,
    examined: Examination,
    execution: LabelExecution,
    reporter: Reporter,
) -> None:
    damage = examined.units or UnitDamage()
    replaced = repair_units(repairs, job, damage, execution, reporter)
    repair_dataset(
        repairs,
        job,
        examined,
        replaced=replaced,
        whole=not repairs.left,
        progress=lambda what, done, total: reporter.measure(what.capitalize(), done, total),
    )


def _with_remedy(uri: str, problem: Problem) -> Problem:
    remedy = f"; `{phf('gc', uri, '--delete')}` removes it" if problem.stray else ""
    return replace(problem, what=problem.what + remedy)


def _result(
    storage: Storage,
    uri: str,
    problems: Sequence[Problem],
    repairs: Repairs,
    left: Sequence[Problem],
    *,
    dry_run: bool,
) -> Repaired:
    newest = max(generations(storage), default=None)
    return Repaired(uri, problems, repairs.done, left, dry_run, newest, unfinished(storage))
