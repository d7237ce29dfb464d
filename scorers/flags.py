"""Command-line options that set a key of the configuration, named in the option's annotation."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, get_type_hints


@dataclass(frozen=True)
class Sets:
    """Annotation of an option: the dotted key of the setting that it gives."""

    key: str


def settings_of(command: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and the key of each parameter that gives a setting."""
    for name, hint in get_type_hints(command, include_extras=True).items():
        for each in getattr(hint, "__metadata__", ()):
            if isinstance(each, Sets):
                yield name, each.key


def given_settings(command: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that were given as options, nested by key.

    Args:
        command: the command, with parameters annotated with `Sets`.
        values: the value of each parameter, by name; None and an empty list mean that it was not given.
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
