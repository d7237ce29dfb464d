"""Check evaluations before the first one starts, because each takes minutes to hours."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.dataset import LabelledDataset, open_dataset
from pipeline.dataset.manifest import ScorerEntry
from scorers.errors import UserError
from training.config import ResolvedConfig
from training.data.cache import relocate_data
from training.data.store import META_NAME
from training.disk import check_writable
from training.evaluation.by_field import MetadataField
from training.evaluation.prepare import Judge, build_judge, check_guidance, check_threshold
from training.measuring_config import EvaluationConfig
from training.runs.facts import RunFacts
from training.runs.folder import RunFolder
from training.runs.report import report_folder


@dataclass(frozen=True)
class EvaluationRequest:
    """A requested evaluation.

    Attributes:
        run: the run.
        judge: the scorer of the samples.
        hit_threshold: samples with a higher score are hits; None for the sentence threshold of reports.
        config: sampling settings; None for the run's own.
    """

    run: RunFolder
    judge: Judge
    hit_threshold: float | None = None
    config: EvaluationConfig | None = None


def check_evaluations(
    requests: Sequence[EvaluationRequest],
    *,
    dataset: str | None = None,
    device: str = "auto",
    allow_other_scorer: bool = False,
) -> None:
    """Check that all requested evaluations can be made, without loading tokens or models.

    Args:
        requests: the evaluations.
        dataset: where the labelled dataset is now, if it was moved.
        device: torch device; `auto` for a GPU if there is one.
        allow_other_scorer: see `prepare_evaluation`.

    Raises:
        UserError: an evaluation cannot be made; says which and why.
    """
    place = torch_device(device)
    datasets = [check_evaluation(each, dataset) for each in requests]
    # Build each scorer once: most runs share it, and building may load a network.
    built: list[tuple[Judge, ScorerEntry | None]] = []
    for each, labelled in zip(requests, datasets, strict=True):
        scorer = (each.judge, labelled.manifest.scorers.get(each.judge.name))
        if scorer not in built:
            build_judge(each.judge, labelled, device=place, allow_other=allow_other_scorer)
            built.append(scorer)


def check_model(run: RunFolder) -> None:
    """Check that a run has exported its model.

    Raises:
        UserError: it has not.
    """
    facts = run.read_facts()
    if not run.model.is_dir():
        raise UserError(
            f"{run.path} has no model yet (status: {facts.status}, step {facts.step} of {facts.horizon.steps}). "
            "Run the same `phf train` command again; it continues where it stopped and exports the model at the end."
        )


def check_evaluation(request: EvaluationRequest, dataset: str | None = None) -> LabelledDataset:
    """Check that an evaluation can be made, without building its scorer.

    Returns:
        The dataset of the run.

    Raises:
        UserError: it cannot be made; says why.
    """
    run, judge = request.run, request.judge
    facts, trained = run.read_facts(), run.read_config()
    check_model(run)
    check_threshold(judge, request.hit_threshold)
    check_guidance(trained.objective, request.config or trained.evaluation)
    if dataset is None:
        _check_relative(run, trained.data.dataset)
    labelled = open_dataset(main_data(trained, dataset).data.dataset)
    _check_scorer(run, facts, labelled)
    by = (request.config or trained.evaluation).by
    if by is not None:
        MetadataField(labelled, by).check()
    if judge.spec is None:
        labelled.require_column(judge.name)
    check_writable(
        report_folder(run, None if is_own(judge, facts) else judge.name),
        "An evaluation is stored in the folder of its run: make that writable, or evaluate a copy of it.",
    )
    return labelled


def is_own(judge: Judge, facts: RunFacts) -> bool:
    """Whether a judge is the scorer of the column that the run was trained on."""
    return judge == Judge(facts.column)


def main_data(config: ResolvedConfig, dataset: str | None) -> ResolvedConfig:
    """The configuration with only the main dataset, wherever it is now, without scores of single tokens and targets."""
    data = relocate_data(config.data, dataset).model_copy(update={"mixture": (), "token_scores": False})
    # The run may be somebody else's: use the store that it names if it exists, but do not build one there.
    if data.store is not None and not (Path(data.store) / META_NAME).is_file():
        data = data.model_copy(update={"store": None})
    # Weights are for training: those of the main dataset alone, which may have grown, need not exist.
    objective = config.objective.model_copy(update={"targets": {}})
    return config.model_copy(update={"data": data, "objective": objective})


def torch_device(name: str) -> str:
    """The name of the torch device, with `auto` resolved.

    Raises:
        UserError: torch cannot use it here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        # Torch raises AssertionError for some devices that it was compiled without.
        raise UserError(
            f"--device {name}: torch cannot use it here ({type(error).__name__}); try auto or cpu."
        ) from None
    return name


def _check_relative(run: RunFolder, uri: str) -> None:
    if "://" not in uri and not Path(uri).is_absolute() and not Path(uri).exists():
        raise UserError(
            f"{run.path} was trained on {uri!r}, which is relative to the folder in which the command was run, and "
            "there is no such dataset here. Give its path with --dataset, or run the command in that folder."
        )


def _check_scorer(run: RunFolder, facts: RunFacts, dataset: LabelledDataset) -> None:
    dataset.require_column(facts.column)
    entry = dataset.manifest.scorers[facts.column]
    if entry != facts.scorer:
        raise UserError(
            f"{dataset.uri} is labelled by another scorer than when {run.path} was trained "
            f"(column {facts.column!r}: {entry.fingerprint} now, {facts.scorer.fingerprint} then). "
            "Give the dataset that it was trained on with --dataset, or train again."
        )
