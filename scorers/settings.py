"""Load typed settings from a YAML file, flags and `--set` overrides; errors name the key and the remedy."""

import difflib
import errno
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from scorers.errors import UserError
from scorers.paths import escape_path
from scorers.printing import refuse_secret

Settings = TypeVar("Settings", bound=BaseModel)

_LARGEST = 16 * 1024 * 1024  # bytes of a file
_MOST_VALUES = 1_000_000  # in a file


class Whole(dict[str, Any]):
    """A mapping that replaces a weaker one instead of being merged with it."""


class FileSettings(dict[str, Any]):
    """The settings in a YAML file, which may be a pipe and is therefore read once."""

    def __init__(self, file: Path, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.file = file


def load_settings(
    model: type[Settings],
    *,
    file: Path | FileSettings | None = None,
    flags: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """Build `model` from, weakest first: `defaults`, the YAML `file`, `flags`, then `overrides` of the form `a.b=c`.

    Args:
        model: a pydantic model with `extra="forbid"`.
        file: YAML with the same fields as `model`: its path, or what `read_yaml` returned.
        flags: nested values of command-line flags; None means that a flag was not given.
        overrides: `--set` arguments; the value is read as YAML (`1e6` and `1_000` are numbers).
        defaults: nested values, such as a preset's.

    Raises:
        UserError: the file cannot be read, a key is unknown, a value has the wrong type (each key is named), or a URI
            holds a secret.
    """
    values: dict[str, Any] = {}
    _merge(values, defaults or {})
    if isinstance(file, Path):
        file = read_yaml(file)
    if file is not None:
        _merge(values, _without_empty_sections(file, model))
    _merge(values, _without_none(flags or {}))
    for override in overrides:
        _merge(values, parse_override(override))
    _refuse_secrets(values, "")
    where = "" if file is None else f" (in {file.file}, flags or --set)"
    return validate(model, values, f"The configuration is not valid{where}")


def validate(model: type[Settings], values: Mapping[str, Any], problem: str) -> Settings:
    """Build `model` from nested values.

    Raises:
        UserError: begins with `problem`, followed by one line for each key.
    """
    try:
        settings = model.model_validate(values)
        if lost := [*_lost_booleans(values, settings, ())]:
            raise ValidationError.from_exception_data(model.__name__, lost)
    except ValidationError as error:
        raise UserError(f"{problem}:\n{_describe(error, model, values)}") from None
    return settings


def _lost_booleans(given: Any, taken: Any, path: tuple[int | str, ...]) -> Iterator[InitErrorDetails]:
    """Find the booleans that pydantic took for a number: to it, true is 1."""
    if isinstance(given, bool) and not isinstance(taken, bool):
        kind = PydanticCustomError("boolean", "Input should be a number, not true or false")
        yield InitErrorDetails(type=kind, loc=path, input=given)
    elif isinstance(given, Mapping):
        for key, value in given.items():
            inner = taken.get(key, value) if isinstance(taken, Mapping) else getattr(taken, str(key), value)
            yield from _lost_booleans(value, inner, (*path, key))
    elif isinstance(given, list) and isinstance(taken, list | tuple):
        for index, (value, inner) in enumerate(zip(given, taken, strict=False)):
            yield from _lost_booleans(value, inner, (*path, index))


def _refuse_secrets(value: Any, key: str) -> None:
    if isinstance(value, Mapping):
        for name, each in value.items():
            _refuse_secrets(each, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for each in value:
            _refuse_secrets(each, key)
    elif isinstance(value, str):
        refuse_secret(value, key)


def read_yaml(file: Path) -> FileSettings:
    """Return the mapping that a YAML file holds.

    Raises:
        UserError: the file is missing, is not YAML, holds something other than a mapping, or is a pipe without content.
    """
    try:
        text = _read_text(file)
        values = _load(text)
    except OSError as error:
        raise UserError(f"Cannot read the configuration {file}: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start:,}). Save it as UTF-8.") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{file}{line} is not valid YAML: {getattr(error, 'problem', None) or error}.") from None
    if not text and file.is_fifo():
        # Each rank of a run reads the file, and finds a pipe empty that another one has read.
        raise UserError(f"{file} is a pipe without content, or one that was read before. Give a file.")
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{file} must hold a mapping of settings, not {_kind(values)}.")
    return FileSettings(file, values)


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
        ValueError: a date or a number is invalid, a value contains itself, or aliases repeat values too often.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        # Before anything is built: aliases of aliases, also in merged keys, can make a small file fill the memory.
        if _size(node, {}) > _MOST_VALUES:
            raise ValueError(f"its aliases repeat more than {_MOST_VALUES:,} values")
        return _copied(loader.construct_document(node))
    except RecursionError:
        raise ValueError("it is nested too deeply, or contains itself") from None
    finally:
        loader.dispose()


# Types of yaml are quoted: PYTHONPATH may hold another yaml, and phf must start in order to name it.
def _size(node: "yaml.Node", known: dict[int, int]) -> int:
    """Return the number of keys and values in a node, each as often as aliases repeat it.

    Raises:
        yaml.YAMLError: a mapping has a key twice, of which PyYAML would drop the first unseen.
    """
    inside = node.value if isinstance(node, yaml.CollectionNode) else ()
    if id(node) not in known:
        if isinstance(node, yaml.MappingNode):
            _refuse_repeated_keys(node)
        # A mapping has pairs of nodes, a list has nodes.
        each = (part for item in inside for part in (item if isinstance(item, tuple) else (item,)))
        known[id(node)] = 1 + sum(_size(part, known) for part in each)
    return known[id(node)]


def _refuse_repeated_keys(node: "yaml.MappingNode") -> None:
    found: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in found:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark)
            found.add((key.tag, key.value))


def _read_text(file: Path) -> str:
    """Read a file of settings, which may be a pipe, but none without end.

    Raises:
        OSError: it cannot be read, or is too large.
        UnicodeDecodeError: it is not UTF-8.
    """
    with file.open("rb") as opened:
        content = opened.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise OSError(errno.EFBIG, f"it has more than the {_LARGEST:,} bytes that settings may have", str(file))
    return content.decode()


def describe_first_error(error: ValidationError) -> str:
    """Describe the first error in a stored file: the key and what is wrong there, without the content."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"{escape_path(key) or 'its start'}: {_plain(first['msg'])}"


def _describe(error: ValidationError, model: type[BaseModel], values: Mapping[str, Any]) -> str:
    """Describe a validation error in one line per key, with the nearest known key for an unknown one."""
    # A value of none of several types has an error for each of them.
    problems: dict[str, list[str]] = {}
    shown: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        path, given = _given_path(detail, values), detail["input"]
        key = ".".join(map(str, path))
        problem = _describe_one(detail, path, model)
        others = problems.setdefault(key, [])
        others.append(problem.removeprefix("Input should be ") if others else problem)
        if isinstance(given, str | int | float | bool) and detail["type"] not in _SAYS_ALL:
            shown[key] = f" (given: {given!r})"
    return "\n".join(
        f"  {f'{key}: ' if key else ''}{', or '.join(each)}{shown.get(key, '')}" for key, each in problems.items()
    )


def _given_path(detail: ErrorDetails, values: Any) -> tuple[int | str, ...]:
    """The key of an error as the user writes it: pydantic's has the names of types in it."""
    path: list[int | str] = []
    for part in detail["loc"]:
        try:
            values = values[part]
        except (LookupError, TypeError):
            continue
        path.append(part)
    return (*path, detail["loc"][-1]) if detail["type"] == "missing" else tuple(path)


def _describe_one(detail: ErrorDetails, path: tuple[int | str, ...], model: type[BaseModel]) -> str:
    match detail["type"]:
        case "extra_forbidden":
            known = _known_fields(model, path[:-1])
            near = difflib.get_close_matches(str(path[-1]), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}" if known else ""
            return f"no such setting{'; ' + hint if hint else ''}"
        case "missing":
            return "required, but not given"
        case "model_type" if known := _known_fields(model, path):
            given = detail["input"] if isinstance(detail["input"], str | int | float) else "…"
            section = f"{{{known[0]}: {given}}}"
            if not any(isinstance(part, int) for part in path):
                section = f"{'.'.join(map(str, path))}.{known[0]}={given}"
            return f"is a section of settings, not a value: write {section}"
    return _plain(detail["msg"])


# Errors whose description needs no value beside it.
_SAYS_ALL = {"extra_forbidden", "missing", "model_type"}


def _plain(message: str) -> str:
    """Return pydantic's message in the terms of YAML, without the names of our classes."""
    message = message.removeprefix("Value error, ").replace("a valid tuple", "a list")
    return re.sub(r"a valid dictionary( or instance of \w+)?", "a mapping", message)


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"the value {value!r}"


def _known_fields(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The settings in the section at `path`; parts of it may be keys of a mapping or positions in a list."""
    current: Any = model
    entry = False
    for part in path:
        if entry:
            entry = False
            continue
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            return []
        entry = get_origin(field.annotation) in (dict, list, tuple)
        candidates = [field.annotation, *get_args(field.annotation)]
        current = next((each for each in candidates if hasattr(each, "model_fields")), None)
    return list(getattr(current, "model_fields", {}))


def _merge(target: dict[str, Any], source: Mapping[str, Any], path: str = "") -> None:
    """Put stronger settings over weaker ones.

    Raises:
        UserError: a setting would go into a value that is no mapping, and replace it unseen.
    """
    for key, value in source.items():
        weaker = target.get(key)
        if weaker is None or not isinstance(value, Mapping) or isinstance(value, Whole):
            target[key] = _copied(value)
        elif isinstance(weaker, dict):
            _merge(weaker, value, f"{path}{key}.")
        elif value:
            inner = next(iter(value))
            raise UserError(
                f"{path}{key}: {path}{key}.{inner} is given, and {path}{key} is also given as {_kind(weaker)}, which "
                f"has no {inner!r}. Write it as a mapping."
            )


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
