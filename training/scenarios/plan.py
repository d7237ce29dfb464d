"""Plan scenarios of a run: check everything and choose the prompts before anything is sampled."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from scorers.errors import UserError
from training.data.prepare import PreparedData, prepare
from training.evaluation.checks import EvaluationRequest, check_evaluation, main_data, torch_device
from training.evaluation.evaluate_run import check_data
from training.evaluation.prepare import EvaluationSetup, Judge, check_guidance, prepare_evaluation
from training.measuring_config import EvaluationConfig
from training.runs.folder import RunFolder
from training.runs.report import run_fingerprint
from training.runs.scenario_report import (
    HELD_OUT,
    NO_PROMPTS,
    SCENARIO_SAMPLES_SCHEMA,
    Scenario,
    ScenarioReport,
    read_prompts_table,
    read_scenario,
    scenario_folder,
)
from training.runs.tables import SAMPLES_NAME, read_table
from training.scenarios.boundary import Boundary
from training.scenarios.continuations import Drawing
from training.scenarios.prompts import GivenPrompt, Prompts, choose_prompts, read_prompts

# Part of every fingerprint: raise it when the same settings give other samples.
_REVISION = 1


class Progress(Protocol):
    """Called with a stage, the amount done, the total, and perhaps a note."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show the progress."""


@dataclass(frozen=True)
class ScenarioPlan:
    """A checked scenario of a run.

    Attributes:
        run: the run.
        scenario: the settings.
        data, setup: of the run.
        prompts: the chosen prompts.
        boundary: of the run's tokenizer.
        device: torch device.
        sampler: name of the endpoint that draws the samples; None for this process.
    """

    run: RunFolder
    scenario: Scenario
    data: PreparedData
    setup: EvaluationSetup
    prompts: Prompts
    boundary: Boundary
    device: str
    sampler: str | None = None

    @property
    def folder(self) -> Path:
        """Where its results are."""
        return scenario_folder(self.run, self.scenario.name)

    @property
    def drawing(self) -> Drawing:
        """How its continuations are drawn."""
        return Drawing(self.scenario, self.setup, self.boundary, self.prompts.every)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that samples and scores depend on, except the device."""
        parts = {
            "revision": _REVISION,
            "scenario": self.scenario.model_dump(mode="json", exclude={"name", "prompts", "field"}),
            "run": run_fingerprint(self.run),
            "prompts": [(each.fingerprint, each.slice) for each in self.prompts.every],
            "scorer": self.setup.scorer.fingerprint,
            "hit_threshold": self.setup.hit_threshold,
            # Other random numbers than here; which server it is does not matter, as it has the same model.
            **({} if self.sampler is None else {"sampler": "endpoint"}),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def finished(self) -> ScenarioReport | None:
        """The report, if this very scenario has been evaluated to the end."""
        with contextlib.suppress(UserError):
            report = read_scenario(self.run, self.scenario.name)
            if report is not None and report.fingerprint == self.fingerprint:
                read_table(self.folder / SAMPLES_NAME, SCENARIO_SAMPLES_SCHEMA, self.run, report.samples.number)
                read_prompts_table(self.run, report)
                return report
        return None


def read_prompt_files(
    scenarios: Sequence[Scenario], read: Callable[[str, str | None], list[GivenPrompt]] = read_prompts
) -> dict[str, list[GivenPrompt]]:
    """Read the files of prompts of scenarios with different names: the records by the scenario's name.

    Args:
        scenarios: of one run.
        read: reads a file; several runs can share one that caches.

    Raises:
        UserError: two have the same name; or as for `read_prompts`.
    """
    names = [each.name for each in scenarios]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"Two scenarios are named {name!r}: their results would share a folder. Describe one in a YAML file "
                "with another `name`, or evaluate them by two commands, the second with --set name=NAME."
            )
    return {
        each.name: read(each.prompts, each.field) for each in scenarios if each.prompts not in (HELD_OUT, NO_PROMPTS)
    }


def plan_scenarios(
    run: RunFolder,
    scenarios: Sequence[Scenario],
    records: dict[str, list[GivenPrompt]],
    *,
    config: EvaluationConfig | None = None,
    dataset: str | None = None,
    device: str = "auto",
    allow_other_scorer: bool = False,
    hit_threshold: float | None = None,
    progress: Progress | None = None,
) -> list[ScenarioPlan]:
    """Check scenarios of a run, and choose their prompts; nothing is sampled.

    Args:
        run: the run.
        scenarios: what to evaluate.
        records: from `read_prompt_files`.
        config: its `batch_size` is that of the sampling; None for the run's own.
        dataset: where the labelled dataset is now, if it was moved.
        device: torch device; `auto` for a GPU if there is one.
        allow_other_scorer: see `prepare_evaluation`.
        hit_threshold: samples with a higher score are hits; None for the sentence threshold of reports.
        progress: shows how the data is prepared.

    Raises:
        UserError: the run cannot be evaluated, guidance is asked for without control tokens, or prompts do not fit.
    """
    facts, place = run.read_facts(), torch_device(device)
    judge = Judge(facts.column)
    check_evaluation(EvaluationRequest(run, judge, hit_threshold, config), dataset)
    trained = main_data(run.read_config(), dataset)
    for each in scenarios:
        check_guidance(trained.objective, EvaluationConfig(guidance=each.guidance), f"{each.name}: guidance")
    data = prepare(trained, progress, compare_texts=False)
    warnings = check_data(run, facts, data)
    if hit_threshold is None and facts.sentence_threshold is not None:
        hit_threshold = facts.sentence_threshold.value
    setup = prepare_evaluation(
        data,
        kind=facts.kind,
        config=(config or trained.evaluation).model_copy(update={"guidance": 1.0}),
        hit_threshold=hit_threshold,
        device=place,
        allow_other_scorer=allow_other_scorer,
        judge=judge,
        predict=False,
    )
    setup.warnings.extend(warnings)
    boundary = Boundary(data.tokenizer)
    plans = []
    for each in scenarios:
        prompts = choose_prompts(
            each,
            data,
            boundary,
            kind=facts.kind,
            context_length=setup.context_length,
            has_tag=bool(setup.control_ids) and each.control != "none",
            records=records.get(each.name),
        )
        plans.append(ScenarioPlan(run, each, data, setup, prompts, boundary, place))
    return plans
