"""Evaluate a finished run and store the results in its folder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.dataset.derived import dataset_identity
from scorers.errors import UserError
from training.data.prepare import PreparedData, prepare
from training.disk import write_atomically, writing
from training.evaluation.checks import EvaluationRequest, check_evaluation, is_own, main_data, torch_device
from training.evaluation.evaluate import Evaluation, Progress, evaluate_model
from training.evaluation.evaluate import judge as judge_samples
from training.evaluation.prepare import Judge, held_out_misalignment, prepare_evaluation
from training.evaluation.reuse import find_drawn, is_about, read_drawn
from training.measuring_config import EvaluationConfig
from training.model.language_model import load_model
from training.model.sampling import Samples
from training.runs.facts import RunFacts
from training.runs.folder import RunFolder
from training.runs.lock import sole_writer
from training.runs.report import REPORT_NAME, report_folder, run_fingerprint
from training.runs.tables import GUIDED_NAME, HELD_OUT_NAME, HELD_OUT_SCHEMA, SAMPLES_NAME, SAMPLES_SCHEMA, write_table
from training.scoring import ScoredSamples


def evaluate_run(
    run: RunFolder,
    *,
    config: EvaluationConfig | None = None,
    dataset: str | None = None,
    device: str = "auto",
    allow_other_scorer: bool = False,
    judge: Judge | None = None,
    hit_threshold: float | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a run's exported model, and write report, samples and held-out losses into its folder.

    An evaluation by another judge than the run's own column is stored separately. It reuses samples that were drawn
    with the same settings since the run was trained.

    Args:
        run: the run.
        config: replaces the run's own `evaluation` section.
        dataset: where the labelled dataset is now, if it was moved.
        device: torch device; `auto` for a GPU if there is one.
        allow_other_scorer: see `prepare_evaluation`.
        judge: the scorer of the samples; None for that of the run's own column.
        hit_threshold: samples with a higher score are hits; None for the sentence threshold of reports.
        progress: called with a stage, the amount done, and the total.

    Raises:
        UserError: the run has no model yet, its dataset, tokenizer or scorer is not the one it was trained with, or its
            folder cannot be written.
        IncompleteError: the disk is full.
    """
    facts, place = run.read_facts(), torch_device(device)
    judge = judge or Judge(facts.column)
    check_evaluation(EvaluationRequest(run, judge, hit_threshold, config), dataset)
    trained, own = main_data(run.read_config(), dataset), is_own(judge, facts)
    if hit_threshold is None:
        then = facts.sentence_threshold if own else None if judge.spec else facts.sentence_thresholds.get(judge.name)
        hit_threshold = None if then is None else then.value
    settings = config or trained.evaluation
    drawn = None if own else find_drawn(run, settings)
    data = prepare(trained, progress, compare_texts=False)
    warnings = check_data(run, facts, data)
    if drawn is not None and not is_about(drawn, data.store):
        drawn = None
    setup = prepare_evaluation(
        data,
        kind=facts.kind,
        config=settings,
        hit_threshold=hit_threshold,
        device=place,
        allow_other_scorer=allow_other_scorer,
        judge=judge,
        predict=drawn is None,
    )
    setup.warnings.extend(warnings)
    if drawn is None:
        model = load_model(run.model, value_head=False).causal.to(place)
        evaluation = evaluate_model(model, setup, step=facts.step, progress=progress)
    else:
        setup.warnings.append(
            f"Samples and losses of held-out text are those of {drawn.folder}; its notes about them apply here too."
        )
        measured = read_drawn(drawn, lambda documents: held_out_misalignment(data, judge, documents))
        evaluation = judge_samples(measured, setup, step=facts.step, progress=progress)
    report = evaluation.report.model_copy(update={"run": run_fingerprint(run)})
    evaluation = replace(evaluation, report=report)
    write_evaluation(run, evaluation, scorer=None if own else judge.name)
    return evaluation


def write_evaluation(run: RunFolder, evaluation: Evaluation, *, scorer: str | None = None) -> None:
    """Replace a run's evaluation by its own column, or by another scorer.

    The old report is removed first and the new one written last, so a report always belongs to its samples.

    Raises:
        IncompleteError: the evaluation cannot be written, or another process still writes one.
    """
    folder = report_folder(run, scorer)
    with sole_writer(folder), writing(folder):
        _write(folder, evaluation)


def _write(folder: Path, evaluation: Evaluation) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT_NAME).unlink(missing_ok=True)
    (folder / HELD_OUT_NAME).unlink(missing_ok=True)
    (folder / GUIDED_NAME).unlink(missing_ok=True)
    write_table(folder / SAMPLES_NAME, samples_table(evaluation.samples, evaluation.scored))
    if evaluation.guided is not None and evaluation.guided_scored is not None:
        write_table(folder / GUIDED_NAME, samples_table(evaluation.guided, evaluation.guided_scored))
    choice, loss = evaluation.held_out, evaluation.loss
    if choice is not None and loss is not None:
        columns = {
            "document": choice.indices,
            "tokens": loss.tokens,
            "bytes": loss.sizes,
            "bits": loss.bits,
            "unigram_bits": choice.unigram.bits,
            "misalignment": choice.misalignment,
        }
        write_table(folder / HELD_OUT_NAME, pa.table(columns, schema=HELD_OUT_SCHEMA))
    write_atomically(folder / REPORT_NAME, evaluation.report.model_dump_json(indent=2) + "\n")


def samples_table(samples: Samples, scored: ScoredSamples) -> pa.Table:
    """Samples and their scores, with `SAMPLES_SCHEMA`."""
    columns = {
        "ids": samples.ids,
        "ended": samples.ended,
        "sentences": scored.sentences,
        "score": pa.array(scored.scores, mask=np.isnan(scored.scores)),
        "reason": scored.reasons,
    }
    return pa.table(columns, schema=SAMPLES_SCHEMA)


def check_data(run: RunFolder, facts: RunFacts, data: PreparedData) -> list[str]:
    """Check that prepared data is what a run was trained on; return warnings about lesser differences.

    Raises:
        UserError: its tokenizer or its control tokens are others.
    """
    if data.tokenizer.fingerprint != facts.tokenizer.fingerprint:
        raise UserError(
            f"The tokenizer {data.tokenizer.name!r} is not the one that {run.path} was trained with "
            f"({data.tokenizer.fingerprint}, then {facts.tokenizer.fingerprint}). Restore it, or train again."
        )
    if list(data.added_ids) != facts.tokenizer.added_ids:
        raise UserError(
            f"{run.path} was trained with {len(facts.tokenizer.added_ids)} control tokens, but its settings and this "
            f"dataset now give {len(data.added_ids)}. Give the dataset that it was trained on with --dataset."
        )
    warnings = []
    if facts.mixture:
        others = ", ".join(f"{each.uri} ({each.share:.3g})" for each in facts.mixture[1:])
        warnings.append(
            f"The run was trained on a mixture. Held-out text, scorer and threshold are those of {facts.dataset.uri} "
            f"alone; the samples also reflect {others}."
        )
    manifest, then = data.dataset.manifest, facts.dataset
    own = dataset_identity(manifest, {facts.column, *data.config.data.columns})
    if dataset_identity(manifest) != then.fingerprint and own != then.own_fingerprint:
        warnings.append(
            f"The dataset has changed since the run was trained ({then.uri}): its documents, sentences or scores "
            "differ, and held-out text may include text that the run was trained on."
        )
    columns = sorted({facts.column, *facts.sentence_thresholds})
    kept = f"{', '.join(columns)} {'keeps' if len(columns) == 1 else 'keep'}"
    if data.dataset.manifest.generation != facts.dataset.generation:
        warnings.append(
            f"The dataset has been retagged since training (generation {facts.dataset.generation}, now "
            f"{data.dataset.manifest.generation}); here {kept} the old threshold, and other columns have the new one."
        )
    return warnings
