"""Finetune a run's model on labelled texts, and measure how well it classifies others.

It shows whether a preference has cost what a model is later finetuned for. The finetuned models are not kept.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from scorers.errors import UserError
from scorers.fingerprint import library_versions
from training.capability.classifier import Classifier, Schedule, finetune, macro_f1, predict
from training.capability.labelled_texts import LabelledText, LabelledTexts
from training.disk import write_atomically, writing
from training.evaluation.generating import Writer, choose_tag, open_writer
from training.measuring_config import ClassificationConfig
from training.model.language_model import load_model
from training.runs.classification_report import (
    ClassificationReport,
    TrialFacts,
    classification_path,
    read_classification,
)
from training.runs.finished_trials import finished_trials
from training.runs.folder import RunFolder
from training.runs.report import run_fingerprint

# The default learning rate of the finetuning, relative to that of the pretraining.
_RELATIVE_RATE = 0.1

Progress = Callable[[str, int, int], None]


def classify(
    run: RunFolder, texts: LabelledTexts, config: ClassificationConfig, *, device: str, progress: Progress
) -> ClassificationReport:
    """Measure a run and store the report in its folder; finished trials with the same settings are kept.

    The model reads each text after the beginning of a document and its best control token, if it has any.

    Args:
        run: the run.
        texts: from `read_labelled_texts`.
        config: settings.
        device: torch device.
        progress: called with a stage, the steps done, and their total.

    Raises:
        UserError: the model cannot be loaded, has no room for a text, or finetuning diverges.
        IncompleteError: the report cannot be written.
    """
    writer = open_writer(run.model, device)
    condition = choose_tag(writer.tags, None, 1, writer.condition)
    prefix = writer.prompt_ids("", condition)
    room = None if writer.context_length is None else writer.context_length - len(prefix)
    if room is not None and room < 1:
        raise UserError(f"{run.path}: the model's context of {writer.context_length} tokens has no room for a text.")
    train, test = (_rows(writer, side, prefix) for side in (texts.train, texts.test))
    report = ClassificationReport(
        created_by=f"phf {library_versions('phf')['phf']}",
        run=run_fingerprint(run),
        name=texts.name,
        texts=texts.fingerprint,
        config=config,
        learning_rate=config.learning_rate or _RELATIVE_RATE * run.read_config().training.learning_rate,
        classes=len(texts.classes),
        train=len(train),
        test=len(test),
        shortened=sum(room is not None and len(row) - len(prefix) > room for row in (*train, *test)),
        majority=texts.majority,
        prefix=prefix,
        condition=condition,
        step=run.read_facts().step,
        device=device,
        trials=[],
    )
    train, test = ([row[: writer.context_length] for row in side] for side in (train, test))
    kept = finished_trials(
        report,
        lambda: read_classification(run, texts.name),
        config_apart_from=("text_field", "label_field", "test_share"),
    )
    report = report.model_copy(update={"trials": kept or []})
    for trial in range(len(report.trials), config.trials):
        facts = _run_trial(run, report, texts, train, test, trial, progress)
        report = report.model_copy(update={"trials": [*report.trials, facts]})
        path = classification_path(run, texts.name)
        with writing(path):
            write_atomically(path, report.model_dump_json(indent=2) + "\n")
    return report


def _rows(writer: Writer, texts: tuple[LabelledText, ...], prefix: list[int]) -> list[list[int]]:
    ids, lengths = writer.tokenizer.encode([each.text for each in texts])
    return [[*prefix, *each.tolist()] for each in np.split(ids, np.cumsum(lengths)[:-1])]


def _run_trial(
    run: RunFolder,
    report: ClassificationReport,
    texts: LabelledTexts,
    train: list[list[int]],
    test: list[list[int]],
    trial: int,
    progress: Progress,
) -> TrialFacts:
    config, seed, stage = report.config, report.config.seed + trial, f"{report.name}, trial {trial + 1}"

    def show(done: int, total: int) -> None:
        progress(stage, done, total)

    # Updates of a small learning rate vanish in half precision.
    causal = load_model(run.model, value_head=False).causal.float().to(report.device)
    classifier = Classifier(causal, report.classes, seed)
    schedule = Schedule(config.epochs, config.batch_size, report.learning_rate)
    loss = finetune(classifier, train, _labels(texts.train), schedule, seed, show)
    labels, found = _labels(texts.test), predict(classifier, test, config.batch_size)
    return TrialFacts(accuracy=float(np.mean(labels == found)), macro_f1=macro_f1(labels, found), loss=loss)


def _labels(texts: tuple[LabelledText, ...]) -> NDArray[np.int64]:
    return np.array([each.label for each in texts], dtype=np.int64)
