"""Options of commands that give a setting: each names, where it is declared, the key that it sets."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, get_type_hints


@dataclass(frozen=True)
class Sets:
    """Stands in the annotation of an option, beside its name, type and help: the dotted key of the setting it gives."""

    key: str


def settings_of(command: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """The parameters of a command that give a setting: name and key."""
    for name, hint in get_type_hints(command, include_extras=True).items():
        for each in getattr(hint, "__metadata__", ()):
            if isinstance(each, Sets):
                yield name, each.key


def given_settings(command: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the options of a command give, nested by their keys; those not given are left out.

    Args:
        command: its parameters are annotated with `Sets`.
        values: of its parameters, by name.
    """
    nested: dict[str, Any] = {}
    for name, key in settings_of(command):
        value = values[name]
        if value is None or value == []:
            continue
        *sections, last = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value.value if isinstance(value, Enum) else value
    return nested
