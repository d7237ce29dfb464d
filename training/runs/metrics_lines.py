"""The lines of `metrics.jsonl`: one JSON object each, a logged step or a measurement after it."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scorers.errors import UserError
from scorers.stored import parse_json

# Limits far beyond what phf writes: bytes of a line, and figures: integers are below 2^63, and others are float32.
_LONGEST_LINE = 1024 * 1024
_GREATEST = 1e39


def format_metrics(values: Mapping[str, Any]) -> str:
    """A line of `metrics.jsonl`; numbers that are not finite become null, as JSON has no others."""
    return json.dumps(_finite(values), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of `metrics.jsonl` in the order of their steps, without an unfinished last line.

    Raises:
        UserError: another line is damaged; gives its number.
    """
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            if not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
                return
            try:
                values = parse_json(line)
            except ValueError:
                values = None
            if not isinstance(values, dict) or not _are_figures(values):
                raise UserError(
                    f"{path}, line {number:,} is damaged: it is not a JSON object of numbers with a step. Restore it, "
                    "or remove it."
                )
            yield values


def _are_figures(values: Mapping[str, Any]) -> bool:
    step = values.get("step")
    return (
        type(step) is int
        and step >= 0
        and all(isinstance(values.get(name, {}), dict) for name in ("validation", "evaluation"))
        and not any(isinstance(values.get(name), dict) for name in ("tokens", "loss", "ce"))
        and all(
            all(map(_is_figure, each.values())) if isinstance(each, dict) else _is_figure(each)
            for each in values.values()
        )
    )


def _is_figure(value: Any) -> bool:
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or (isinstance(value, float) and abs(value) < _GREATEST)
