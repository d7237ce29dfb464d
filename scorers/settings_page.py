"""Print every setting of a configuration with its default and meaning, from its pydantic model."""

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
from scorers.errors import UserError

AsYaml = Annotated[bool, typer.Option("--yaml", help="Print them as YAML, with every setting commented out.")]


@dataclass(frozen=True)
class Setting:
    """A field of a configuration.

    Attributes:
        key: dotted, as `--set` takes it; `NAME` and `[]` stand for an entry of a mapping and of a list.
        kind: the allowed values, such as `integer >= 1` or `linear | cosine`.
        default: a JSON value; None also if there is no default.
        required: whether it must be given.
        meaning: the field's description.
        section: whether it only holds the settings that follow.
    """

    key: str
    kind: str
    default: Any
    required: bool
    meaning: str
    section: bool = False


def print_settings(model: type[BaseModel], *, as_yaml: bool, as_json: bool) -> None:
    """Print all settings of a model on stdout.

    Raises:
        UserError: two formats are asked for.
    """
    if as_yaml and as_json:
        raise UserError("--yaml and --json are two formats. Give one of them.")
    found = settings_of(model)
    if as_json:
        print_json({"settings": [asdict(each) for each in found]})
    else:
        width = min(shutil.get_terminal_size((100, 0)).columns, 120)
        sys.stdout.write(to_yaml(found) if as_yaml else to_text(found, width))


def settings_of(model: type[BaseModel]) -> list[Setting]:
    """Return all settings of a model and of the models in it, in order; their fields must have descriptions."""
    schema = model.model_json_schema()
    return list(_settings(schema, schema.get("$defs", {}), ""))


def to_text(settings: list[Setting], width: int) -> str:
    """Format settings for people, in lines of `width` characters: key, kind and default, with the meaning below."""
    lines = []
    for each in settings:
        default = "required" if each.required else f"default {_shown(each.default)}"
        lines.append(each.key if each.section else f"{each.key}  ({each.kind}; {default})")
        lines += textwrap.wrap(each.meaning, width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def to_yaml(settings: list[Setting], width: int = 120) -> str:
    """Format settings as a file for `--config`, all commented out: remove the `#` from a line to set it."""
    lines: list[str] = []
    named = ""
    for each in settings:
        *above, name = each.key.split(".")
        if above and above[-1] == "NAME" and named != (named := ".".join(above)):
            lines.append(f"{'  ' * (len(above) - 1)}# NAME:")
        # Entries of a mapping or a list exist only if the user adds them.
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
        meaning = field.get("description") or (inner or {}).get("description", "")
        default = field.get("default", _EMPTY.get(field.get("type", "")))
        # A section has no default of its own, only those of its settings.
        section = inner is not None and not (where or optional)
        # YAML, and so `--set`, spells None as null.
        meaning = re.sub(r"\bNone\b", "null", meaning)
        yield Setting(key, _kind(field, models), default, name in required and not section, meaning, section)
        if inner is not None:
            yield from _settings(inner, models, f"{key}{where}.")


def _inner(field: dict[str, Any], models: dict[str, Any]) -> tuple[dict[str, Any] | None, str, bool]:
    """Return the model that a field is or holds, what its key adds (`[]` or `.NAME`), and whether it may be null."""
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
