"""Evaluate a finished run, and keep what was found in its folder."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from transformers.utils.logging import disable_progress_bar

from pipeline.dataset import open_dataset
from pipeline.dataset.writer import parquet_writer
from scorers.errors import UserError
from training.config import EvaluationConfig, TrainConfig
from training.data.places import derived_place
from training.data.prepare import PreparedData, prepare
from training.evaluation.evaluate import Evaluation, Progress, evaluate_model
from training.evaluation.report import HELD_OUT_NAME, REPORT_NAME, SAMPLES_NAME
from training.evaluation.setup import prepare_evaluation
from training.model.language_model import load_model
from training.run.folder import RunFacts, RunFolder, write_atomically

SAMPLES_SCHEMA = pa.schema(
    [
        pa.field("ids", pa.list_(pa.int32()), nullable=False),
        pa.field("ended", pa.bool_(), nullable=False),
        pa.field("sentences", pa.int32(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("reason", pa.string()),
    ]
)
HELD_OUT_SCHEMA = pa.schema(
    [
        pa.field("document", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("bits", pa.float64(), nullable=False),
        pa.field("unigram_bits", pa.float64(), nullable=False),
        pa.field("misalignment", pa.float64(), nullable=False),
    ]
)


def evaluate_run(
    run: RunFolder,
    *,
    config: EvaluationConfig | None = None,
    dataset: str | None = None,
    device: str = "auto",
    allow_other_scorer: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a run's exported model and write report, samples and held-out costs into its folder.

    Args:
        run: the run.
        config: in place of the run's own `evaluation` section.
        dataset: where the labelled dataset lies now, if it was moved.
        device: torch device; `auto` for a GPU where there is one.
        allow_other_scorer: see `prepare_evaluation`.
        progress: called with a stage, what is done and of how much.

    Raises:
        UserError: the run has no model yet, or its dataset, tokenizer or scorer is not what it was trained with.
    """
    facts, trained = run.read_facts(), run.read_config()
    if not run.model.is_dir():
        raise UserError(
            f"{run.path} has no model yet (status: {facts.status}, step {facts.step} of {facts.horizon.steps}). "
            "Run the same `phf train` command again; it goes on where it stopped and exports the model at the end."
        )
    place = _device(device)
    trained = _main_data(trained, dataset)
    _check_scorer(run, facts, trained.data.dataset)
    data = prepare(trained, progress)
    warnings = _check_data(run, facts, data)
    threshold = facts.sentence_threshold
    setup = prepare_evaluation(
        data,
        kind=facts.kind,
        config=config or trained.evaluation,
        hit_threshold=threshold.value if threshold is not None else None,
        device=place,
        allow_other_scorer=allow_other_scorer,
    )
    setup.warnings.extend(warnings)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    model = load_model(run.model, value_head=False).causal.to(place)
    evaluation = evaluate_model(model, setup, step=facts.step, progress=progress)
    report = evaluation.report.model_copy(update={"run": run_fingerprint(run)})
    evaluation = replace(evaluation, report=report)
    write_evaluation(run, evaluation)
    return evaluation


def run_fingerprint(run: RunFolder) -> str:
    """A hash of `run.json`, which changes whenever the run is trained further or anew."""
    return hashlib.sha256(run.read_facts().model_dump_json(exclude={"status"}).encode()).hexdigest()[:16]


def write_evaluation(run: RunFolder, evaluation: Evaluation) -> None:
    """Replace a run's evaluation. The report goes first and comes last, so none stands beside other samples."""
    folder = run.evaluation
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT_NAME).unlink(missing_ok=True)
    (folder / HELD_OUT_NAME).unlink(missing_ok=True)
    scored = evaluation.scored
    samples = {
        "ids": evaluation.samples.ids,
        "ended": evaluation.samples.ended,
        "sentences": scored.sentences,
        "score": pa.array(scored.scores, mask=np.isnan(scored.scores)),
        "reason": scored.reasons,
    }
    _write_table(folder / SAMPLES_NAME, pa.table(samples, schema=SAMPLES_SCHEMA))
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
        _write_table(folder / HELD_OUT_NAME, pa.table(columns, schema=HELD_OUT_SCHEMA))
    write_atomically(folder / REPORT_NAME, evaluation.report.model_dump_json(indent=2) + "\n")


def _write_table(path: Path, table: pa.Table) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as sink, parquet_writer(sink, table.schema) as writer:
        writer.write_table(table)
    temporary.replace(path)


def _device(name: str) -> str:
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


def _main_data(config: TrainConfig, dataset: str | None) -> TrainConfig:
    """The main dataset, wherever it is now, in one phase: what is held out is the same, and the others may be gone."""
    tokenizer = config.data.tokenizer
    if dataset and config.data.mixture and tokenizer and not Path(tokenizer).exists():
        # The one that was trained on the mixture lies beside the main dataset, and has moved with it.
        moved = derived_place(dataset, Path(tokenizer).name)
        tokenizer = str(moved) if moved.exists() else tokenizer
    changes = {"dataset": dataset or config.data.dataset, "mixture": (), "tokenizer": tokenizer}
    data = config.data.model_copy(update=changes)
    objective = config.objective.model_copy(update={"starts_at": 0.0, "cooldown": 0.0})
    return config.model_copy(update={"data": data, "objective": objective})


def _check_scorer(run: RunFolder, facts: RunFacts, uri: str) -> None:
    dataset = open_dataset(uri)
    dataset.require_column(facts.column)
    entry = dataset.manifest.scorers[facts.column]
    if entry != facts.scorer:
        raise UserError(
            f"{uri} is not labelled by the scorer that it was labelled by when {run.path} was trained "
            f"(column {facts.column!r}: {entry.fingerprint} now, {facts.scorer.fingerprint} then). "
            "Give the dataset that it was trained on with --dataset, or train again."
        )


def _check_data(run: RunFolder, facts: RunFacts, data: PreparedData) -> list[str]:
    if data.tokenizer.fingerprint != facts.tokenizer.fingerprint:
        raise UserError(
            f"The tokenizer {data.tokenizer.name!r} is not the one that {run.path} was trained with "
            f"({data.tokenizer.fingerprint}, then {facts.tokenizer.fingerprint}). Put the old one back, or train again."
        )
    warnings = []
    if facts.mixture:
        others = ", ".join(f"{each.uri} ({each.share:.3g})" for each in facts.mixture[1:])
        warnings.append(
            f"The run was trained on a mixture. Held-out text, scorer and threshold are those of {facts.dataset.uri} "
            f"alone; the samples show what was learnt from {others} too."
        )
    if data.dataset.manifest.generation != facts.dataset.generation:
        warnings.append(
            f"The dataset has been retagged since training (generation {facts.dataset.generation}, now "
            f"{data.dataset.manifest.generation}); thresholds here are still those of the training."
        )
    return warnings
