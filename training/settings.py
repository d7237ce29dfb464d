"""Resolve the settings of a run: a preset, overridden by a YAML file, flags and `--set`, in this order."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scorers.errors import UserError
from scorers.settings import load_settings, parse_override, read_yaml
from training.config import ResolvedConfig, TrainConfig
from training.presets import CONTEXT_LENGTH, preset
from training.targets import parse_targets


def resolve_config(
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    *,
    defaults: Mapping[str, Any] | None = None,
    base: Mapping[str, Any] | None = None,
) -> ResolvedConfig:
    """Resolve the configuration of a run, except what the dataset or the machine decides.

    Args:
        file: YAML with the fields of `TrainConfig`.
        flags: nested values of flags; None counts as not given.
        overrides: `--set` arguments.
        base: settings of another run, instead of a preset; if the objective differs, its section comes from the preset.
        defaults: lowest-priority values, such as sections that a plan does not need.

    Raises:
        UserError: an unreadable file, an unknown key, a value of the wrong type, or an unknown model; names the key.
    """
    given = None if file is None else read_yaml(file)
    layers = [given or {}, flags or {}, *map(parse_override, overrides)]
    task, objective = _strongest(layers, "task"), _strongest(layers, "objective", "name")
    if base is None:
        under = {**(defaults or {}), **preset(str(task), "mle" if objective is None else str(objective))}
    else:
        under = {**(defaults or {}), **base}
        if objective not in (None, base["objective"]["name"]):
            under["objective"] = preset(str(task or base["task"]), str(objective)).get("objective", {})
    return fill_in(load_settings(TrainConfig, file=given, flags=flags, overrides=overrides, defaults=under))


def takes_dotted_keys(values: Mapping[str, Any]) -> bool:
    """Whether `--set` can name each entry of a mapping; not those of `objective.targets`, such as `toxicity<=0.1`."""
    return not any("." in str(key) or "=" in str(key) for key in values)


def fill_in(config: TrainConfig) -> ResolvedConfig:
    """Fill in the column and the context length if they are None: the task's name, and 1024 or the model's limit.

    With several columns, the default column is the first if the task's name is not among them. Targets on several
    columns make them columns of the run.

    Raises:
        UserError: the model is unknown, or a target is malformed or missing.
    """
    columns = _columns(config)
    column = config.data.column or _column(config.task, columns)
    given = config.model_dump()
    given["data"] |= {
        "column": column,
        "columns": {} if list(columns) == [column] and not config.data.columns else columns,
        "mixture": [{**each, "column": each["column"] or column} for each in given["data"]["mixture"]],
        "context_length": config.data.context_length or _context_length(config),
    }
    return ResolvedConfig.model_validate(given)


def _columns(config: TrainConfig) -> dict[str, float]:
    """Return the columns that a run is trained on and their weights; empty for that of the task."""
    columns, targets = config.data.columns, parse_targets(config.objective.targets)
    if config.objective.name == "target" and not targets:
        raise UserError(
            "The objective target needs objective.targets: what shares of the sentences, or mean scores, the corpus "
            "shall have. Give for example --set 'objective.targets={\"toxicity<=0.001\": 0.995}'."
        )
    if config.objective.name != "target":
        return columns
    of_report = [] if config.data.column is None else [config.data.column]
    return {**dict.fromkeys([*of_report, *(each.column for each in targets)], 1.0), **columns}


def _column(task: str, columns: Mapping[str, float]) -> str:
    return next(iter(columns)) if columns and task not in columns else task


def _context_length(config: TrainConfig) -> int:
    from training.model.build_network import max_positions

    return min(CONTEXT_LENGTH, max_positions(config.model) or CONTEXT_LENGTH)


def _strongest(layers: Sequence[Mapping[str, Any]], *path: str) -> Any:
    for layer in reversed(layers):
        value: Any = layer
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None
