"""Write `metrics.jsonl` and pass its lines to the trackers that mirror it."""

import contextlib
from collections.abc import Mapping
from typing import Any

from training.disk import write_atomically, writing
from training.runs.folder import RunFolder
from training.runs.metrics_lines import format_metrics
from training.trackers.open import Mirrors


def keep_lines(folder: RunFolder, step: int) -> list[dict[str, Any]]:
    """Remove lines of later steps from `metrics.jsonl`: a run that resumes from `step` logs them again.

    Returns:
        The remaining lines.

    Raises:
        IncompleteError: the file cannot be written.
        UserError: it is damaged.
    """
    with writing(folder.metrics):
        kept = [line for line in folder.read_metrics() if line["step"] <= step]
        write_atomically(folder.metrics, "".join(format_metrics(each) for each in kept))
    return kept


class Tracker:
    """Appends lines to `metrics.jsonl`, flushing each, and passes them to the run's trackers, if any.

    Raises:
        IncompleteError: the file cannot be written.
    """

    def __init__(self, folder: RunFolder, mirrors: Mirrors | None = None) -> None:
        self._path = folder.metrics
        self._mirrors = mirrors
        with writing(self._path):
            self._file = self._path.open("a", encoding="utf-8")

    def write(self, values: Mapping[str, Any]) -> None:
        """Write a line: `step`, and numbers, or a mapping of numbers for an evaluation.

        Raises:
            IncompleteError: the line cannot be written.
        """
        with writing(self._path):
            try:
                self._file.write(format_metrics(values))
                self._file.flush()
            except OSError:
                # Close now: flushing the rest of the buffer again at the end would hide this error.
                with contextlib.suppress(OSError):
                    self._file.close()
                raise
        if self._mirrors is not None:
            self._mirrors.log(values)

    def close(self) -> None:
        """Close the file and the trackers.

        Raises:
            IncompleteError: not everything reached the disk, which a network file system reports only now.
        """
        try:
            with writing(self._path):
                self._file.close()
        finally:
            if self._mirrors is not None:
                self._mirrors.close()
