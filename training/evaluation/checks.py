"""What is wrong with evaluations, found before any of them is made: one takes minutes to hours."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.dataset import LabelledDataset, open_dataset
from pipeline.dataset.manifest import ScorerEntry
from scorers.errors import UserError
from training.config import EvaluationConfig, TrainConfig
from training.data.cache import moved_data
from training.data.store import META_NAME
from training.disk import check_writable
from training.evaluation.prepare import Judge, build_judge, check_guidance, check_threshold
from training.runs.folder import RunFacts, RunFolder
from training.runs.report import report_folder


@dataclass(frozen=True)
class Asked:
    """An evaluation that is asked for.

    Attributes:
        run: the run.
        judge: what scores the samples.
        hit_threshold: a sample with a higher score is a hit; None for what reports take for aligned.
        config: how to sample; None for as the run's own settings say.
    """

    run: RunFolder
    judge: Judge
    hit_threshold: float | None = None
    config: EvaluationConfig | None = None


def check_evaluations(
    asked: Sequence[Asked], *, dataset: str | None = None, device: str = "auto", allow_other_scorer: bool = False
) -> None:
    """Refuse evaluations of which one cannot be made, as far as it shows without tokens and models.

    Args:
        asked: all that are to be made.
        dataset: where the labelled dataset lies now, if it was moved.
        device: torch device; `auto` for a GPU where there is one.
        allow_other_scorer: see `prepare_evaluation`.

    Raises:
        UserError: names the first, and what is wrong with it.
    """
    place = torch_device(device)
    datasets = [check_evaluation(each, dataset) for each in asked]
    # Those of most runs are the same, and building one may mean to load a network.
    built: list[tuple[Judge, ScorerEntry | None]] = []
    for each, labelled in zip(asked, datasets, strict=True):
        scorer = (each.judge, labelled.manifest.scorers.get(each.judge.name))
        if scorer not in built:
            build_judge(each.judge, labelled, device=place, allow_other=allow_other_scorer)
            built.append(scorer)


def check_evaluation(asked: Asked, dataset: str | None = None) -> LabelledDataset:
    """Refuse an evaluation that cannot be made, as far as it shows without building its scorer.

    Returns:
        The dataset of the run, wherever it is now.

    Raises:
        UserError: says what is wrong.
    """
    run, judge = asked.run, asked.judge
    facts, trained = run.read_facts(), run.read_config()
    if not run.model.is_dir():
        raise UserError(
            f"{run.path} has no model yet (status: {facts.status}, step {facts.step} of {facts.horizon.steps}). "
            "Run the same `phf train` command again; it goes on where it stopped and exports the model at the end."
        )
    check_threshold(judge, asked.hit_threshold)
    check_guidance(facts.objective, asked.config or trained.evaluation)
    if dataset is None:
        _check_relative(run, trained.data.dataset)
    labelled = open_dataset(main_data(trained, dataset).data.dataset)
    _check_scorer(run, facts, labelled)
    if judge.spec is None:
        labelled.require_column(judge.name)
    check_writable(
        report_folder(run, None if is_own(judge, facts) else judge.name),
        "An evaluation is kept in the folder of its run: make that writable, or evaluate a copy of it.",
    )
    return labelled


def is_own(judge: Judge, facts: RunFacts) -> bool:
    """Whether a judge is what scored the column that the run was trained on."""
    return judge == Judge(facts.column)


def main_data(config: TrainConfig, dataset: str | None) -> TrainConfig:
    """The main dataset, wherever it is now. The others may be gone, and what scorers found in tokens is not needed."""
    data = moved_data(config.data, dataset).model_copy(update={"mixture": (), "token_scores": False})
    # The run may be somebody else's: what it names is read where it is there, and nothing is built at that place.
    if data.store is not None and not (Path(data.store) / META_NAME).is_file():
        data = data.model_copy(update={"store": None})
    return config.model_copy(update={"data": data})


def torch_device(name: str) -> str:
    """The device of that name, `auto` resolved.

    Raises:
        UserError: torch cannot use it here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        # Some devices that were not compiled in raise AssertionError.
        raise UserError(
            f"--device {name}: torch cannot use it here ({type(error).__name__}); try auto or cpu."
        ) from None
    return name


def _check_relative(run: RunFolder, uri: str) -> None:
    if "://" not in uri and not Path(uri).is_absolute() and not Path(uri).exists():
        raise UserError(
            f"{run.path} was trained on {uri!r}, which is relative to the folder that the command was given in, and "
            "there is no such dataset here. Say where it lies with --dataset, or give the command in that folder."
        )


def _check_scorer(run: RunFolder, facts: RunFacts, dataset: LabelledDataset) -> None:
    dataset.require_column(facts.column)
    entry = dataset.manifest.scorers[facts.column]
    if entry != facts.scorer:
        raise UserError(
            f"{dataset.uri} is not labelled by the scorer that it was labelled by when {run.path} was trained "
            f"(column {facts.column!r}: {entry.fingerprint} now, {facts.scorer.fingerprint} then). "
            "Give the dataset that it was trained on with --dataset, or train again."
        )
