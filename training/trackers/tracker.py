"""Where numbers go: `metrics.jsonl`, always, and what mirrors it."""

import contextlib
from collections.abc import Mapping
from typing import Any

from training.disk import writing
from training.runs.folder import RunFolder, metrics_line, write_atomically
from training.trackers.open import Mirrors


def keep_lines(folder: RunFolder, step: int) -> list[dict[str, Any]]:
    """Remove from `metrics.jsonl` what was logged after a step, which a run that goes on from there does again.

    Returns:
        The lines that stay.

    Raises:
        IncompleteError: the file cannot be written.
        UserError: it is damaged.
    """
    with writing(folder.metrics):
        kept = [line for line in folder.read_metrics() if line["step"] <= step]
        write_atomically(folder.metrics, "".join(metrics_line(each) for each in kept))
    return kept


class Tracker:
    """Appends to `metrics.jsonl`, a flushed line at a time, and hands the lines to the run's trackers.

    Args:
        folder: of the run.
        mirrors: the trackers; None for none.

    Raises:
        IncompleteError: the file cannot be written.
    """

    def __init__(self, folder: RunFolder, mirrors: Mirrors | None = None) -> None:
        self._path = folder.metrics
        self._mirrors = mirrors
        with writing(self._path):
            self._file = self._path.open("a", encoding="utf-8")

    def write(self, values: Mapping[str, Any]) -> None:
        """One line.

        Args:
            values: of the line: `step`, and numbers, or a mapping of numbers for an evaluation.

        Raises:
            IncompleteError: the line cannot be written.
        """
        with writing(self._path):
            try:
                self._file.write(metrics_line(values))
                self._file.flush()
            except OSError:
                # What is left in its buffer must not be tried again at the end, where it would hide this error.
                with contextlib.suppress(OSError):
                    self._file.close()
                raise
        if self._mirrors is not None:
            self._mirrors.log(values)

    def close(self) -> None:
        """Close everything.

        Raises:
            IncompleteError: what was written did not all reach the disk, as a network's file system says only now.
        """
        try:
            with writing(self._path):
                self._file.close()
        finally:
            if self._mirrors is not None:
                self._mirrors.close()
