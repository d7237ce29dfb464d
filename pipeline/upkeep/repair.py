"""`phf repair`: find what is damaged, and mend it with the least work.

What is written from something else is written from it again: the manifest and the card from the record of their
generation, that and shards and ledger from the scored units, segments from commit records and those from segments, the
plan from the inputs. Scores alone come from nothing else: a unit of which a part is damaged is labelled again, and no
other. Whatever step it dies at, the same command goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pipeline.checking.problems import Problem
from pipeline.checking.units import UnitDamage
from pipeline.checking.verify import Examination, examine
from pipeline.config import LabelExecution
from pipeline.job.epoch import Epoch
from pipeline.job.record import StoredJob, load_job
from pipeline.job.units import UNITS
from pipeline.labelling.monitoring.console import Reporter
from pipeline.labelling.run import NOTHING_LOST
from pipeline.sealing.extent import UnfinishedStep, unfinished
from pipeline.sealing.generations import generations
from pipeline.storage.base import Storage
from pipeline.storage.failures import storage_failures
from pipeline.storage.open import open_storage
from pipeline.upkeep.mend_job import mend_job
from pipeline.upkeep.mend_sealed import mend_dataset
from pipeline.upkeep.mend_units import mend_units
from pipeline.upkeep.mending import Mending, Step
from scorers.errors import UserError
from scorers.shell import phf
from scorers.stopping import stoppable


@dataclass(frozen=True)
class Repaired:
    """What a repair has come to.

    Attributes:
        uri: the dataset.
        problems: that were found at first.
        done: what was done about them, or would be, with `dry_run`.
        left: what is wrong afterwards, or, with `dry_run`, would be.
        dry_run: whether nothing was changed.
        generation: of the dataset afterwards; None where it is not sealed.
        unfinished: what was begun and is not done, which another command goes on with.
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
        """Whether everything is whole now, or would be."""
        return not self.left

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
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
    """Mend a dataset, sealed or still being labelled, where its job lies beside it. Call it in the main thread.

    Args:
        uri: the output of `phf label`.
        execution: how to run what must be labelled again.
        reporter: is told what is going on.
        dry_run: find out and change nothing.

    Raises:
        UserError: there is no dataset or job, or it cannot be read.
        IncompleteError: a disk or store failed.
        StoppedError: stopped by a signal or a newer driver; the same command goes on.
    """
    storage = open_storage(uri)
    with stoppable(NOTHING_LOST), storage_failures(storage):
        has_units = bool(storage.children(UNITS))
        check = partial(examine, storage, uri, unsealed=has_units, progress=partial(reporter.measure, "Checking"))
        examined = check()
        problems = examined.report.problems
        if not problems:
            return _result(storage, uri, problems, Mending(storage, None), [], dry_run=dry_run)
        if not has_units:
            storage.refuse_links()  # one is listed as nothing
            raise UserError(
                f"{uri} is damaged, and a copy without its scored units (units/, job/), from which it could be mended. "
                "Copy it again from where it was labelled."
            )
        mending = Mending(storage, None if dry_run else Epoch.claim(storage))
        if examined.job is not None and examined.job.damaged:
            mend_job(mending, examined.job, examined.report.manifest, reporter)
            if not dry_run and not mending.left:
                # Only with the job it is known which units there must be.
                examined = check()
        if dry_run and examined.job is not None and examined.job.damaged and not mending.left:
            told = {step.path for step in mending.done}
            later = [each for each in problems if each.path not in told and not each.stray]
            mending.done += [Step(each.path, "mended once the job is; only then it is known how") for each in later]
        else:
            job = load_job(storage) if examined.job is not None and not examined.job.damaged else None
            _mend(mending, job, examined, execution, reporter)
        if mending.epoch is not None:
            storage.delete_folder(mending.epoch.staging)
        told = {each.path for each in mending.left}
        now = [each for each in problems if each.stray] if dry_run else check().report.problems
        left = mending.left + [_told(uri, each) for each in now if each.path not in told]
        if not examined.sealed:
            # What of an uncommitted unit lies about is no damage as long as nothing is sealed.
            left = [each for each in left if not each.stray]
        return _result(storage, uri, problems, mending, left, dry_run=dry_run)


def _mend(
    mending: Mending,
    job: StoredJob | None,
    examined: Examination,
    execution: LabelExecution,
    reporter: Reporter,
) -> None:
    damage = examined.units or UnitDamage()
    replaced = mend_units(mending, job, damage, execution, reporter)
    mend_dataset(
        mending,
        job,
        examined,
        replaced=replaced,
        whole=not mending.left,
        progress=lambda what, done, total: reporter.measure(what.capitalize(), done, total),
    )


def _told(uri: str, problem: Problem) -> Problem:
    remedy = f"; `{phf('gc', uri, '--delete')}` removes it" if problem.stray else ""
    return replace(problem, what=problem.what + remedy)


def _result(
    storage: Storage,
    uri: str,
    problems: Sequence[Problem],
    mending: Mending,
    left: Sequence[Problem],
    *,
    dry_run: bool,
) -> Repaired:
    newest = max(generations(storage), default=None)
    return Repaired(uri, problems, mending.done, left, dry_run, newest, unfinished(storage))
