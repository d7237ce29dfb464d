"""Figures that runs logged during training, against tokens: of a run, and their mean over the seeds of a group."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from training.comparison.groups import Group
from training.comparison.run import LoadedRun
from training.statistics import student_t

Point = tuple[float, float, float, float]  # tokens, value, low, high
Line = list[Point]


@dataclass(frozen=True)
class GroupCurve:
    """A figure of a group during training.

    Attributes:
        group: the group.
        line: the mean over seeds with its 95 % interval; of one seed, its own line.
        seeds: the line of each of several seeds; empty for one.
    """

    group: Group
    line: Line
    seeds: list[Line]


def group_curve(group: Group, of: Callable[[LoadedRun], Line]) -> GroupCurve | None:
    """A figure of a group; seeds that did not log it are left out. None if none did."""
    lines = [line for run in group.runs if (line := of(run))]
    if not lines:
        return None
    return GroupCurve(group, mean_line(lines), lines if len(lines) > 1 else [])


def mean_line(lines: Sequence[Line]) -> Line:
    """The mean of lines where all of them are, with t intervals over them; a single one is returned as it is.

    Between the tokens at which a line has a point, it is interpolated linearly.
    """
    if len(lines) == 1:
        return lines[0]
    start, stop = max(line[0][0] for line in lines), min(line[-1][0] for line in lines)
    tokens = np.array(sorted({point[0] for line in lines for point in line if start <= point[0] <= stop}) or [stop])
    values = np.stack([np.interp(tokens, *np.array(line).T[:2]) for line in lines])
    mean = values.mean(axis=0)
    half = student_t(len(lines) - 1) * values.std(axis=0, ddof=1) / len(lines) ** 0.5
    return list(zip(*(each.tolist() for each in (tokens, mean, mean - half, mean + half)), strict=True))


def training_loss(run: LoadedRun) -> Line:
    """Cross-entropy against tokens, smoothed by a mean over the last few logged steps; skipped steps may have none."""
    losses = [(line.get("tokens"), line["ce"] if "ce" in line else line.get("loss")) for line in run.metrics]
    points = [(float(tokens), float(loss)) for tokens, loss in losses if tokens is not None and loss is not None]
    if not points:
        return []
    tokens, values = (np.array(each) for each in zip(*points, strict=True))
    width = max(3, len(points) // 40)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    starts = np.maximum(np.arange(len(values)) - width + 1, 0)
    stops = np.arange(len(values)) + 1
    smooth = ((sums[stops] - sums[starts]) / (stops - starts)).tolist()
    return list(zip(tokens.tolist(), smooth, smooth, smooth, strict=True))


def measured(run: LoadedRun, name: str, by: str = "evaluation") -> Line:
    """A figure of the evaluations during training, with its interval if it has one; `by` may be `validation`."""
    found = []
    for line in run.metrics:
        # Figures that are not finite are stored as null.
        figures = {key: value for key, value in line.get(by, {}).items() if value is not None}
        if name in figures and "tokens" in line:
            value = float(figures[name])
            low, high = (float(figures.get(f"{name}_{end}", value)) for end in ("low", "high"))
            found.append((float(line["tokens"]), value, low, high))
    return found
