"""Where numbers go: `metrics.jsonl`, always, and what mirrors it."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from training.disk import writing
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

    Raises:
        IncompleteError: the file cannot be written.
    """

    def __init__(self, folder: RunFolder, *, step: int, mirrors: Sequence[Mirror] = ()) -> None:
        self._path = folder.metrics
        self._mirrors = mirrors
        with writing(self._path):
            kept = [line for line in folder.read_metrics() if line["step"] <= step]
            write_atomically(self._path, "".join(_line(each) for each in kept))
            self._file = self._path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, Any], *, prefix: str = "train") -> None:
        """One line; `values` must hold `step`. Numbers that are not finite are written as null, which JSON can say.

        Args:
            step: the axis of the trackers.
            values: of the line; numbers, or one mapping of numbers for an evaluation.
            prefix: of the names in the trackers.

        Raises:
            IncompleteError: the line cannot be written.
        """
        with writing(self._path):
            try:
                self._file.write(_line(values))
                self._file.flush()
            except OSError:
                # What is left in its buffer must not be tried again at the end, where it would hide this error.
                with contextlib.suppress(OSError):
                    self._file.close()
                raise
        numbers = dict(_numbers(values, prefix))
        for mirror in self._mirrors:
            mirror.log(numbers, step)

    def close(self) -> None:
        """Close everything.

        Raises:
            IncompleteError: what was written did not all reach the disk, as a network's file system says only now.
        """
        try:
            with writing(self._path):
                self._file.close()
        finally:
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
