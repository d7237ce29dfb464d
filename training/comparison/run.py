"""An evaluated run in memory, as `training.comparison.load` reads it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.config import TrainConfig
from training.runs.facts import RunFacts
from training.runs.folder import RunFolder
from training.runs.report import EvaluationReport, report_folder
from training.settings import takes_dotted_keys


@dataclass(frozen=True)
class HeldOutCosts:
    """The loss of a run on each held-out document, arrays of [n].

    Attributes:
        documents: int64, index in the token store.
        sizes, tokens: int64, UTF-8 bytes and tokens.
        bits: float64, loss of the run.
        unigram_bits: float64, loss by token frequencies alone.
        misalignment: float64, mean score; NaN if there is none.
    """

    documents: NDArray[np.int64]
    sizes: NDArray[np.int64]
    tokens: NDArray[np.int64]
    bits: NDArray[np.float64]
    unigram_bits: NDArray[np.float64]
    misalignment: NDArray[np.float64]


@dataclass(frozen=True)
class LoadedRun:
    """An evaluated run, or the same run with its guided samples (`Comparison.sampled`).

    Attributes:
        label: name in figures: the objective, if no other run has the same.
        folder: the folder of the run.
        facts, config, report: content of the run's files.
        scores: float64 [n], scores of the samples that have one.
        costs: losses on held-out documents; None if no document was held out.
        metrics: lines of `metrics.jsonl`.
        guided_scores: float64 [n], scores of the guided samples that have one; None if there are none.
        guidance: guidance scale of the samples; None for plain samples.
    """

    label: str
    folder: RunFolder
    facts: RunFacts
    config: TrainConfig
    report: EvaluationReport
    scores: NDArray[np.float64]
    costs: HeldOutCosts | None
    metrics: list[dict[str, Any]]
    guided_scores: NDArray[np.float64] | None = None
    guidance: float | None = None

    @property
    def objective(self) -> str:
        """The objective."""
        return self.facts.objective

    @property
    def name(self) -> str:
        """The objective, and whether `phf match` moved the run after it."""
        return self.objective if self.facts.matching is None else f"{self.objective}, matched"

    @property
    def evaluation(self) -> Path:
        """The folder of its report and tables."""
        own = self.report.column == self.facts.column
        return report_folder(self.folder, None if own else self.report.column)

    @property
    def guided(self) -> "LoadedRun | None":
        """The run with its guided samples instead of the plain ones, and without figures that guidance does not change.

        None if there are none.
        """
        guided = self.report.guided
        if guided is None or self.guided_scores is None:
            return None
        return replace(
            self,
            label=f"{self.label} (g = {guided.scale:g})",
            report=self.report.model_copy(update={"samples": guided.samples, "guided": None, "leakage": None}),
            scores=self.guided_scores,
            guided_scores=None,
            guidance=guided.scale,
        )


def config_differences(runs: Sequence[LoadedRun]) -> list[tuple[str, list[Any]]]:
    """Settings that differ between runs, except `output`, each with its values by run."""
    flat = [flat_settings(run.config.model_dump(mode="json", exclude={"output"})) for run in runs]
    keys = dict.fromkeys(key for each in flat for key in each)
    values = [(key, [each.get(key) for each in flat]) for key in keys]
    return [(key, each) for key, each in values if any(value != each[0] for value in each)]


def flat_settings(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `section.field`; an empty section has no entry, and one that `--set` cannot name is JSON."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(value, dict):
            found[prefix + key] = value
        elif takes_dotted_keys(value):
            found.update(flat_settings(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = json.dumps(value)
    return found
