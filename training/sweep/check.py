"""Check all runs of a sweep before the first one starts, and build what they share."""

from collections.abc import Sequence
from typing import Any

import torch

from pipeline.dataset.derived import dataset_identity
from pipeline.dataset.manifest import ScorerEntry
from scorers.errors import UserError
from training.data.prepare import PreparedData, Progress, prepare
from training.disk import refuse_link
from training.evaluation.guidance_request import parse_scales
from training.evaluation.prepare import Judge, build_judge, check_guidance
from training.evaluation.references.compare import read_comparison
from training.evaluation.references.reference import find_reference
from training.loop.continuation import StartOptions, check_resumable, has_work_left
from training.loop.train import check_settings
from training.planning.resolved_run import resolve_run
from training.runs.folder import RunFolder
from training.runs.guidance_report import read_guidance
from training.runs.report import read_report, run_fingerprint
from training.schedule import Horizon, plan_horizon
from training.sweep.config import Problems, SweepRun


def check_runs(runs: Sequence[SweepRun]) -> None:
    """Check what can be checked without the data.

    Raises:
        UserError: settings do not fit together, or a folder holds something else; names the runs.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    problems = Problems()
    for run in runs:
        with problems.of(run.name):
            refuse_link(run.folder.path)
            resolve_run(run.config, check_settings(run.config, 1), device)
            run.folder.check_new()
            check_guidance(run.config.objective, run.evaluation)
    problems.refuse()


def prepare_runs(runs: Sequence[SweepRun], progress: Progress | None = None) -> None:
    """Build the tokenizer and the token stores that are missing, and check that each run can start or resume with them.

    Args:
        runs: checked by `check_runs`.
        progress: see `training.data.prepare.prepare`.

    Raises:
        UserError: a problem with the dataset, a threshold or an objective; or a folder holds a run with other settings
            or of other data. Names the runs.
    """
    problems = Problems()
    data: PreparedData | None = None
    prepared = ""
    built: list[tuple[str, ScorerEntry]] = []
    for run in runs:
        with problems.of(run.name):
            # Runs that differ only in their seeds follow each other, and only one's data are kept in memory.
            if data is None or run.without_seed != prepared:
                data, prepared = prepare(run.config, progress), run.without_seed
                scorer = (data.column, data.dataset.manifest.scorers[data.column])
                if scorer not in built:
                    # A scorer that cannot run here would show only after all training.
                    build_judge(Judge(data.column), data.dataset, device="cpu", allow_other=False)
                    built.append(scorer)
            if run.folder.facts.is_file():
                _check_same(run, data)
    problems.refuse()


def _check_same(run: SweepRun, data: PreparedData) -> None:
    config = data.config.model_copy(update={"output": run.config.output, "training": run.config.training})
    check_resumable(run.folder, config, horizon(run), StartOptions())
    facts, manifest = run.folder.read_facts(), data.dataset.manifest
    own = dataset_identity(manifest, {facts.column, *facts.columns})
    pairs: dict[str, tuple[Any, Any]] = {"the tokenizer": (facts.tokenizer.fingerprint, data.tokenizer.fingerprint)}
    if own != facts.dataset.own_fingerprint:
        pairs["the dataset's texts, sentences or scores"] = (facts.dataset.fingerprint, dataset_identity(manifest))
    differences = [f"  {what}: {then} in the run, {now} now" for what, (then, now) in pairs.items() if then != now]
    if differences:
        lines = "\n".join(differences)
        raise UserError(
            f"{run.folder.path} was trained on other data:\n{lines}\n"
            "Give that dataset, or another `out` for a new sweep."
        )


def horizon(run: SweepRun) -> Horizon:
    """Return the horizon of a run on one rank."""
    return plan_horizon(run.config.training, run.config.data.context_length, ranks=1)


def is_trained(run: SweepRun) -> bool:
    """Return whether a run is finished, with its model, at the length that the sweep gives it."""
    return not has_work_left(run.folder, horizon(run), StartOptions())


def is_evaluated(run: SweepRun) -> bool:
    """Return whether the current model of a run was evaluated with the settings of the sweep."""
    try:
        report = read_report(run.folder)
    except UserError:
        # Damaged, or of another version: it is written again.
        return False
    return report is not None and report.run == run_fingerprint(run.folder) and report.config == run.evaluation


def is_swept(run: SweepRun) -> bool:
    """Return whether the current model of a run was sampled at all guidance scales of the sweep."""
    words = run.sweep_guidance
    if not words:
        return True
    try:
        report = read_guidance(run.folder)
    except UserError:
        return False
    scales = parse_scales(words[words.index("--guidance-sweep") + 1])
    return (
        report is not None
        and report.finished
        and report.run == run_fingerprint(run.folder)
        and report.config == run.evaluation.model_copy(update={"guidance": 1.0})
        and all(report.of(scale) is not None for scale in scales)
        and (run.reference is None or (report.reference is not None and report.reference.run == _state(run.reference)))
    )


def is_compared(run: SweepRun) -> bool:
    """Return whether the current samples and model of a run were compared with the current model of its reference."""
    if run.reference is None:
        return True
    try:
        reference = find_reference(str(run.reference.path), "cpu")
        return read_comparison(run.folder, reference, run.evaluation) is not None
    except UserError:
        # The reference has no model, or samples are damaged: `phf evaluate` says so.
        return False


def _state(run: RunFolder) -> str | None:
    return run_fingerprint(run) if run.facts.is_file() else None


def describe_state(run: SweepRun) -> str:
    """Return what the sweep has to do for a run, in a few words."""
    folder: RunFolder = run.folder
    if not folder.facts.is_file():
        return "new"
    if not is_trained(run):
        facts = folder.read_facts()
        return f"{facts.status}: continues at step {facts.saved or 0:,} of {horizon(run).steps:,}"
    finished = is_evaluated(run) and is_swept(run) and is_compared(run)
    return "finished" if finished else "trained: to be evaluated"
