"""The commands of what is stored about a run beside its evaluation, to measure it again."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scorers.shell import phf
from training.comparison.run import LoadedRun
from training.endpoint import is_address
from training.measuring_config import RedTeamConfig, TamperConfig
from training.runs.guidance_report import read_guidance
from training.runs.probe_report import read_probe
from training.runs.red_team_report import read_red_team
from training.runs.reference_report import read_reference_reports
from training.runs.report import read_stored_reports, run_fingerprint
from training.runs.scenario_report import HELD_OUT, NO_PROMPTS, read_scenario, scenario_names
from training.runs.tamper_report import read_tamper
from training.runs.task_report import TASKS, TaskReport
from training.scenarios.scenario import PROMPTED, UNCONDITIONAL, choose_scenario

NOT_STORED = (
    "phf classify is left out, as the place of its texts is not stored. Add --prompts to an attack that started from a "
    "file. A reference or attacker that is no run of this page may be given by its name alone: give its place."
)


def measuring_commands(run: LoadedRun, runs: Sequence[LoadedRun]) -> list[str]:
    """One command for each measurement of the present state of a run, except its plain evaluation.

    Args:
        run: the run.
        runs: all runs of the page, which references and attackers may be.

    Raises:
        UserError: a stored report is damaged or of another version.
    """
    places = {run_fingerprint(each.folder): str(each.folder.path) for each in runs}
    words = [
        *_references(run, places),
        *_scenarios(run),
        *_guidance(run, places),
        *_others(run),
        *_attacks(run, places),
    ]
    return [phf(*each) for each in words]


def changed(used: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    """The `--set` words for settings that are not the usual ones."""
    changes = [(key, value) for key, value in used.items() if value != usual[key]]
    return [word for key, value in changes for word in ("--set", f"{key}={as_yaml(value)}")]


def as_yaml(value: Any) -> str:
    """A value as `--set` takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _evaluate(run: LoadedRun, *words: object) -> list[object]:
    return ["evaluate", run.folder.path, *words]


def _references(run: LoadedRun, places: Mapping[str, str]) -> Iterator[list[object]]:
    for report in read_reference_reports(run.folder).values():
        if report.run == run_fingerprint(run.folder):
            reference = report.reference
            place = places.get(reference.fingerprint, reference.place)
            model = ["--reference-model", reference.model] if reference.model else []
            prompt = ["--reference-prompt", reference.prompt] if reference.prompt else []
            drawn = report.drawn.model_dump(exclude={"max_tokens"})
            sets = changed(drawn, run.config.evaluation.model_dump())
            yield _evaluate(run, "--reference", place, *model, *prompt, *sets)


def _scenarios(run: LoadedRun) -> Iterator[list[object]]:
    for name in scenario_names(run.folder):
        report = read_scenario(run.folder, name)
        if report is None or report.run != run_fingerprint(run.folder):
            continue
        scenario = report.scenario
        presets = {NO_PROMPTS: UNCONDITIONAL, HELD_OUT: HELD_OUT}
        given = presets.get(scenario.prompts, f"{PROMPTED}={scenario.prompts}")
        usual = choose_scenario(given, report.kind)
        model, _, address = (report.sampler or "").rpartition(" at ")
        sampler = ["--sampler", address, "--sampler-model", model] if report.sampler else []
        yield _evaluate(run, "--scenario", given, *changed(scenario.model_dump(), usual.model_dump()), *sampler)


def _guidance(run: LoadedRun, places: Mapping[str, str]) -> Iterator[list[object]]:
    report = read_guidance(run.folder)
    if report is not None and report.run == run_fingerprint(run.folder):
        scales = ",".join(repr(each.scale).removesuffix(".0") for each in report.scales)
        reference = report.reference
        beside = ["--reference", places.get(reference.run, reference.name)] if reference else []
        sets = changed(report.config.model_dump(exclude={"guidance"}), run.config.evaluation.model_dump())
        yield _evaluate(run, "--guidance-sweep", scales, *beside, *sets)


def _others(run: LoadedRun) -> Iterator[list[object]]:
    probe = read_probe(run.folder)
    if probe is not None and probe.run == run_fingerprint(run.folder):
        yield _evaluate(run, "--probe")
    for task in read_stored_reports(TaskReport, run.folder.evaluation / TASKS, run.folder):
        if task.run == run_fingerprint(run.folder):
            limits = {"--num-fewshot": task.num_fewshot, "--task-limit": task.limit}
            given = [word for name, value in limits.items() if value is not None for word in (name, value)]
            yield _evaluate(run, "--tasks", task.request, *given)


def _attacks(run: LoadedRun, places: Mapping[str, str]) -> Iterator[list[object]]:
    red_team = read_red_team(run.folder)
    if red_team is not None and red_team.run == run_fingerprint(run.folder):
        model, _, address = red_team.attacker_name.rpartition(" at ")
        attacker: list[str] = []
        if is_address(address):
            attacker = ["--attacker", address, "--attacker-model", model]
        elif red_team.attacker != red_team.attacker_name:  # equal for recombination
            attacker = ["--attacker", places.get(red_team.attacker, red_team.attacker_name)]
        sets = changed(red_team.config.model_dump(), RedTeamConfig().model_dump())
        yield ["attack", "red-team", run.folder.path, *attacker, *sets]
    tamper = read_tamper(run.folder)
    if tamper is not None and tamper.run == run_fingerprint(run.folder):
        yield ["attack", "tamper", run.folder.path, *changed(tamper.config.model_dump(), TamperConfig().model_dump())]
