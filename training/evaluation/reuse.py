"""Reuse the samples of an earlier evaluation for another scorer, because samples do not depend on their scorer.

Judging by another scorer shows over-optimisation: a model that only pleases its training scorer improves by that one
and gets worse by others, as a policy does by a proxy and by the gold standard (Gao, Schulman and Hilton, arXiv
2210.10760).
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scorers.errors import UserError
from training.data.store import TokenStore
from training.evaluation.evaluate import Measured, corpus_misalignment
from training.evaluation.held_out_loss import HeldOutLoss
from training.evaluation.prepare import HeldOutChoice, texts_fingerprint
from training.measuring_config import EvaluationConfig
from training.model.sampling import Samples
from training.runs.folder import RunFolder
from training.runs.report import OTHERS, EvaluationReport, SampleFacts, read_report, report_folder, run_fingerprint
from training.runs.tables import GUIDED_NAME, HELD_OUT_NAME, HELD_OUT_SCHEMA, SAMPLES_NAME, SAMPLES_SCHEMA, read_table


@dataclass(frozen=True)
class Drawn:
    """An existing evaluation of the current state of a run."""

    run: RunFolder
    folder: Path
    report: EvaluationReport


def find_drawn(run: RunFolder, config: EvaluationConfig) -> Drawn | None:
    """Find an evaluation whose samples were drawn with these settings since the run was trained; None without one."""
    fingerprint = run_fingerprint(run)
    for scorer in _judged(run):
        # Ignore damaged evaluations: samples can be drawn again.
        with contextlib.suppress(UserError):
            report = read_report(run, scorer)
            if report is None or report.run != fingerprint or _of_samples(config) not in _drawn_by(report):
                continue
            drawn = Drawn(run, report_folder(run, scorer), report)
            read_drawn(drawn, lambda documents: np.zeros(len(documents)))
            return drawn
    return None


def _drawn_by(report: EvaluationReport) -> tuple[EvaluationConfig, EvaluationConfig]:
    """The settings with which its samples were drawn, with and without guidance: plain samples are the same in both."""
    drawn = _of_samples(report.config)
    return drawn, drawn.model_copy(update={"guidance": 1.0})


def _of_samples(config: EvaluationConfig) -> EvaluationConfig:
    """The settings without those on which neither samples nor losses depend."""
    return config.model_copy(update={"by": None, "reference_samples": 2, "reference_tokens": 1, "probe_sentences": 40})


def is_about(drawn: Drawn, store: TokenStore) -> bool:
    """Whether the held-out documents of an evaluation are in this store; the dataset may have grown or be another."""
    held_out = drawn.report.held_out
    if held_out is None:
        return True
    costs = read_table(drawn.folder / HELD_OUT_NAME, HELD_OUT_SCHEMA, drawn.run, held_out.documents)
    documents = costs["document"].to_numpy()
    there = bool(((documents >= 0) & (documents < store.num_documents)).all())
    return there and texts_fingerprint(store, documents) == held_out.fingerprint


def read_drawn(drawn: Drawn, misalignment: Callable[[NDArray[np.int64]], NDArray[np.float64]]) -> Measured:
    """Read the measurements of an evaluation, to be judged by another scorer.

    Args:
        drawn: from `find_drawn`.
        misalignment: takes documents of the store and returns their mean scores by that scorer, float64, NaN for none.

    Raises:
        UserError: a file is missing or damaged.
    """
    report = drawn.report
    samples = _read_samples(drawn, SAMPLES_NAME, report.samples)
    guided = None
    if report.guided is not None:
        guided = _read_samples(drawn, GUIDED_NAME, report.guided.samples)
    if report.held_out is None:
        return Measured(samples, guided, report.leakage, None, None, None, report.device)
    costs = read_table(drawn.folder / HELD_OUT_NAME, HELD_OUT_SCHEMA, drawn.run, report.held_out.documents)
    column = {name: costs[name].to_numpy() for name in costs.column_names}
    tokens, sizes, nats = column["tokens"], column["bytes"], np.log(2)
    means = misalignment(column["document"])
    choice = HeldOutChoice(
        indices=column["document"],
        documents=[],
        swapped=None,
        misalignment=means,
        unigram=HeldOutLoss(column["unigram_bits"] * nats, tokens, sizes),
        fingerprint=report.held_out.fingerprint,
    )
    facts = report.held_out.model_copy(update={"misalignment": corpus_misalignment(means)})
    loss = HeldOutLoss(column["bits"] * nats, tokens, sizes)
    return Measured(samples, guided, report.leakage, choice, loss, facts, report.device)


def _read_samples(drawn: Drawn, name: str, facts: SampleFacts) -> Samples:
    table = read_table(drawn.folder / name, SAMPLES_SCHEMA, drawn.run, facts.number)
    return Samples(table["ids"].to_pylist(), table["ended"].to_pylist(), facts.max_new_tokens)


def _judged(run: RunFolder) -> Iterator[str | None]:
    yield None
    others = run.evaluation / OTHERS
    if others.is_dir():
        yield from sorted(path.name for path in others.iterdir())
