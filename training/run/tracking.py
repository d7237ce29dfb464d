"""Where numbers go: `metrics.jsonl`, always, and what mirrors it."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from training.run.folder import RunFolder, write_atomically
from training.run.trackers.opening import Mirror


class Tracker:
    """Appends to `metrics.jsonl`, a flushed line at a time, and hands the numbers to the run's trackers.

    A run that goes on from a checkpoint repeats the steps after it, so their earlier lines are removed first. The
    trackers must have been opened before, as they read in the file what they were sent.

    Args:
        folder: of the run.
        step: steps done; later lines are dropped.
        mirrors: trackers that are open.
    """

    def __init__(self, folder: RunFolder, *, step: int, mirrors: Sequence[Mirror] = ()) -> None:
        kept = [line for line in folder.read_metrics() if line["step"] <= step]
        write_atomically(folder.metrics, "".join(_line(each) for each in kept))
        self._file = folder.metrics.open("a", encoding="utf-8")
        self._mirrors = mirrors

    def write(self, step: int, values: Mapping[str, Any], *, prefix: str = "train") -> None:
        """One line; `values` must hold `step`. Numbers that are not finite are written as null, which JSON can say.

        Args:
            step: the axis of the trackers.
            values: of the line; numbers, or one mapping of numbers for an evaluation.
            prefix: of the names in the trackers.
        """
        self._file.write(_line(values))
        self._file.flush()
        numbers = dict(_numbers(values, prefix))
        for mirror in self._mirrors:
            mirror.log(numbers, step)

    def close(self) -> None:
        """Flush and close everything."""
        self._file.close()
        for mirror in self._mirrors:
            mirror.close()


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, int | float) and name != "step":
            yield f"{prefix}/{name}", value
        elif isinstance(value, Mapping):
            yield from ((f"{name}/{each}", number) for each, number in value.items())


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(_finite(values), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
