"""How to reproduce the runs of a comparison, from nothing but what the page says."""

from typing import Any

from scorers.errors import UserError
from scorers.shell import phf
from training.comparison.load import Comparison
from training.comparison.measuring_commands import NOT_STORED, as_yaml, changed, measuring_commands
from training.comparison.run import LoadedRun, config_differences, flat_settings
from training.comparison.section import NONE, Cell, Row, Section, Table
from training.data.cache import trained_on_dataset
from training.settings import resolve_config


def reproduction_section(comparison: Comparison) -> Section:
    """The commands, and the settings that differ between the runs."""
    groups = [group for group in comparison.groups if group.guidance is None]
    rows = []
    for key, values in config_differences(comparison.runs):
        shown = {run.label: _setting(value) for run, value in zip(comparison.runs, values, strict=True)}
        each = [", ".join(dict.fromkeys(shown[run.label] for run in group.runs)) for group in groups]
        rows.append(Row(key, [Cell(text) for text in each]))
    table = Table(
        "Settings that differ between the runs",
        "All other settings are equal; those of several seeds are in one cell. Each run's config.yaml has all of them.",
        [group.label for group in groups],
        rows,
        heading="setting",
        sortable=False,
    )
    lines = commands(comparison)
    more = any(measuring_commands(run, comparison.runs) for run in comparison.runs)
    tables = [table] if rows else []
    return Section("How to reproduce the results", note=NOT_STORED if more else "", tables=tables, commands=lines)


def commands(comparison: Comparison) -> list[str]:
    """The commands that train, evaluate and attack each run, and one to compare them all."""
    lines = []
    for run in comparison.runs:
        lines += [_train(run), _evaluate(run)]
    for run in comparison.runs:
        # After all are trained: one may be the reference of another.
        lines += measuring_commands(run, comparison.runs)
    folders = [run.folder.path for run in comparison.runs]
    shown = ["--show-text", str(comparison.show_text)] if comparison.show_text else []
    return [*lines, phf("compare", *folders, "--output", "comparison", *shown)]


def _train(run: LoadedRun) -> str:
    config = run.config
    flags: dict[str, Any] = {
        "output": str(run.folder.path),
        "task": config.task,
        "data": {"dataset": config.data.dataset},
        "model": {"name": config.model.name},
        "objective": {"name": config.objective.name, "targets": config.objective.targets},
    }
    words = [
        "train", config.data.dataset, "--task", config.task, "--objective", config.objective.name,
        "--model", config.model.name, "--output", str(run.folder.path),
    ]  # fmt: skip
    if config.objective.targets:
        words += ["--set", f"objective.targets={as_yaml(config.objective.targets)}"]
    try:
        usual = flat_settings(resolve_config(None, flags).model_dump(mode="json"))
    except UserError:
        # The model's own config is not available here, so the defaults are unknown: give every setting.
        usual = {}
    named = {"output", "task", "data.dataset", "model.name", "objective.name"}
    if trained_on_dataset(config.data):
        # Leave out the path on this machine: the same tokenizer is trained again elsewhere.
        named.add("data.tokenizer")
    for key, value in flat_settings(config.model_dump(mode="json")).items():
        if key not in named and value != usual.get(key):
            words += ["--set", f"{key}={as_yaml(value)}"]
    return phf(*words)


def _evaluate(run: LoadedRun) -> str:
    used, own = run.report.config.model_dump(), run.config.evaluation.model_dump()
    return phf("evaluate", run.folder.path, *changed(used, own))


def _setting(value: Any) -> str:
    return NONE if value is None else f"{value:g}" if isinstance(value, float) else str(value)
