"""Every setting of a configuration with its default and its meaning, as its pydantic model says."""

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from scorers.console import print_json

AsYaml = Annotated[bool, typer.Option("--yaml", help="Print a file for --config instead, in which nothing is set yet.")]


@dataclass(frozen=True)
class Setting:
    """A field of a configuration.

    Attributes:
        key: dotted, as `--set` takes it; `NAME` and `[]` stand for what is in a mapping and in a list.
        kind: what it may be, such as `integer >= 1` or `linear | cosine`.
        default: a JSON value; None also where there is none.
        required: whether it has to be given.
        meaning: of the field's description.
        section: whether it is only a place for others, which follow.
    """

    key: str
    kind: str
    default: Any
    required: bool
    meaning: str
    section: bool = False


def print_settings(model: type[BaseModel], *, as_yaml: bool, as_json: bool) -> None:
    """Print all settings of a model on stdout."""
    found = settings_of(model)
    if as_json:
        print_json({"settings": [asdict(each) for each in found]})
    else:
        width = min(shutil.get_terminal_size((100, 0)).columns, 120)
        sys.stdout.write(to_yaml(found) if as_yaml else to_text(found, width))


def settings_of(model: type[BaseModel]) -> list[Setting]:
    """All settings of a model and of those in it, in their order.

    Args:
        model: whose fields have descriptions.
    """
    schema = model.model_json_schema()
    return list(_settings(schema, schema.get("$defs", {}), ""))


def to_text(settings: list[Setting], width: int) -> str:
    """For people: key, kind and default on a line, the meaning below.

    Args:
        settings: of `settings_of`.
        width: of a line, in characters.
    """
    lines = []
    for each in settings:
        default = "required" if each.required else f"default {_shown(each.default)}"
        lines.append(each.key if each.section else f"{each.key}  ({each.kind}; {default})")
        lines += textwrap.wrap(each.meaning, width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def to_yaml(settings: list[Setting], width: int = 120) -> str:
    """A file for `--config` in which nothing is set yet: take the `#` away from a line to set it.

    Args:
        settings: of `settings_of`.
        width: of a comment's line, in characters.
    """
    lines: list[str] = []
    named = ""
    for each in settings:
        *above, name = each.key.split(".")
        if above and above[-1] == "NAME" and named != (named := ".".join(above)):
            lines.append(f"{'  ' * (len(above) - 1)}# NAME:")
        # What is in a mapping or in a list is there only where somebody puts it there.
        loose = any("[]" in part or part == "NAME" for part in each.key.split("."))
        indent = "  " * len(above)
        required = " Required." if each.required and not loose else ""
        comment = f"{indent}# "
        lines += textwrap.wrap(f"{each.meaning}{required}", width, initial_indent=comment, subsequent_indent=comment)
        if each.section and not loose and not above:
            lines.append(f"{name}:")
        else:
            value = "" if each.section or each.required else f" {_shown(each.default)}"
            lines.append(f"{indent}# {name.replace('[]', '')}:{value}")
    return "\n".join(lines) + "\n"


def _settings(schema: dict[str, Any], models: dict[str, Any], prefix: str) -> Iterator[Setting]:
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        key = f"{prefix}{name}"
        inner, where, optional = _inner(field, models)
        # Where both say the same, it is not repeated.
        meaning = field.get("description") or (inner or {}).get("description", "")
        default = field.get("default", _EMPTY.get(field.get("type", "")))
        # The default of a section is that of its settings.
        section = inner is not None and not (where or optional)
        # In files and in `--set` it is YAML's word.
        meaning = re.sub(r"\bNone\b", "null", meaning)
        yield Setting(key, _kind(field, models), default, name in required and not section, meaning, section)
        if inner is not None:
            yield from _settings(inner, models, f"{key}{where}.")


def _inner(field: dict[str, Any], models: dict[str, Any]) -> tuple[dict[str, Any] | None, str, bool]:
    """The model that a field is, or holds; how its place is written after the field's key; whether it may be null."""
    for option in (field, *field.get("anyOf", []), *field.get("allOf", [])):
        items, values = option.get("items"), option.get("additionalProperties")
        for reference, where in ((option, ""), (items, "[]"), (values, ".NAME")):
            if isinstance(reference, dict) and "$ref" in reference:
                found = models[reference["$ref"].rpartition("/")[2]]
                if "properties" in found:
                    return found, where, "anyOf" in field
    return None, "", False


_EMPTY: dict[str, Any] = {"object": {}, "array": []}
_RANGE = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def _kind(field: dict[str, Any], models: dict[str, Any]) -> str:
    if "$ref" in field:
        return _kind(models[field["$ref"].rpartition("/")[2]], models)
    if "anyOf" in field:
        return " | ".join(dict.fromkeys(_kind(each, models) for each in field["anyOf"]))
    if "enum" in field or "const" in field:
        return " | ".join(str(each) for each in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}), models)}"
    if field.get("type") == "object":
        return "mapping"
    limits = [f"{sign} {field[name]:g}" for name, sign in _RANGE.items() if name in field]
    return " ".join([field.get("type", "any"), ", ".join(limits)]).strip()


def _shown(default: Any) -> str:
    return json.dumps(default, ensure_ascii=False)
