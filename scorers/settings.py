"""Load typed settings from a YAML file, flags and `--set` overrides; errors name the key and the remedy."""

import difflib
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from scorers.errors import UserError
from scorers.paths import escape_path
from scorers.printing import refuse_secret

Settings = TypeVar("Settings", bound=BaseModel)


class Whole(dict[str, Any]):
    """A mapping that replaces a weaker one instead of being merged with it."""


def load_settings(
    model: type[Settings],
    *,
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """Build `model` from, weakest first: `defaults`, the YAML `file`, `flags`, then `overrides` of the form `a.b=c`.

    Args:
        model: a pydantic model with `extra="forbid"`.
        file: YAML with the same fields as `model`.
        flags: nested values of command-line flags; None means that a flag was not given.
        overrides: `--set` arguments; the value is read as YAML (`1e6` and `1_000` are numbers).
        defaults: nested values, such as a preset's.

    Raises:
        UserError: the file cannot be read, a key is unknown, a value has the wrong type (each key is named), or a URI
            holds a secret.
    """
    values: dict[str, Any] = {}
    _merge(values, defaults or {})
    if file is not None:
        _merge(values, _without_empty_sections(read_yaml(file), model))
    _merge(values, _without_none(flags or {}))
    for override in overrides:
        _merge(values, parse_override(override))
    _refuse_secrets(values, "")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        where = f" (in {file}, flags or --set)" if file else ""
        raise UserError(f"The configuration is not valid{where}:\n" + describe(error, model)) from None


def _refuse_secrets(value: Any, key: str) -> None:
    if isinstance(value, Mapping):
        for name, each in value.items():
            _refuse_secrets(each, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for each in value:
            _refuse_secrets(each, key)
    elif isinstance(value, str):
        refuse_secret(value, key)


def read_yaml(file: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        UserError: the file is missing, is not YAML or holds something other than a mapping.
    """
    try:
        values = _load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read the configuration {file}: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start:,}). Save it as UTF-8.") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{file}{line} is not valid YAML: {getattr(error, 'problem', None) or error}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{file} must hold a mapping of settings, not a {type(values).__name__}.")
    return values


def parse_override(override: str) -> dict[str, Any]:
    """Parse `a.b=c` into `{"a": {"b": c}}`; the value is YAML, but `1e6` is a number (YAML 1.1 reads it as text).

    Raises:
        UserError: the `=` is missing, a part of the key is empty, or the value is not YAML.
    """
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise UserError(f"--set {override!r} is not of the form KEY=VALUE, such as training.num_tokens=1e6.")
    try:
        value: Any = _load(text)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"--set {key}: the value {text!r} is not valid YAML; quote it.") from None
    if isinstance(value, str):
        value = read_number(value)
    for part in reversed(parts):
        value = {part: value}
    nested: dict[str, Any] = value
    return nested


def read_number(text: str) -> str | int | float:
    """Return the finite number that a text is, as an int if it is whole, else the text: YAML 1.1 leaves `1e6` text."""
    try:
        number = float(text)
        exact = Decimal(text)
    except (ValueError, ArithmeticError):
        return text
    if not math.isfinite(number):
        return text
    return int(exact) if exact == exact.to_integral_value() else number


def _load(text: str) -> Any:
    """Parse YAML.

    Raises:
        yaml.YAMLError: it is not YAML.
        ValueError: a date or a number is invalid, or a value contains itself.
    """
    try:
        return _copied(yaml.safe_load(text))
    except RecursionError:
        raise ValueError("it is nested too deeply, or contains itself") from None


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Describe a validation error in one line per field, with the nearest known key for an unknown one."""
    return "\n".join(f"  {_describe_one(detail, model)}" for detail in error.errors(include_url=False))


def describe_first_error(error: ValidationError) -> str:
    """Describe the first error in a stored file: the key and what is wrong there, without the content."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"{escape_path(key) or 'its start'}: {first['msg'].removeprefix('Value error, ')}"


def _describe_one(detail: ErrorDetails, model: type[BaseModel]) -> str:
    path = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _known_fields(model, detail["loc"][:-1])
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}" if known else ""
        return f"{path}: no such setting{'; ' + hint if hint else ''}"
    if detail["type"] == "missing":
        return f"{path}: required, but not given"
    # Our models hold tuples, but a file has lists.
    message = detail["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")
    given = detail["input"]
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{path + ': ' if path else ''}{message}{shown}"


def _known_fields(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    current: Any = model
    for part in path:
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            return []
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        current = next((each for each in candidates if hasattr(each, "model_fields")), None)
    return list(getattr(current, "model_fields", {}))


def _merge(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict) and not isinstance(value, Whole):
            _merge(target[key], value)
        else:
            target[key] = _copied(value)


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value


def _without_empty_sections(values: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Return a file's values without the sections that have a name and no content."""
    sections = {
        name
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    return {key: value for key, value in values.items() if value is not None or key not in sections}


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Whole):
            kept[key] = value
        elif isinstance(value, Mapping):
            nested = _without_none(value)
            if nested:
                kept[key] = nested
        elif value is not None:
            kept[key] = value
    return kept
