"""Where numbers go: `metrics.jsonl`, always, and TensorBoard."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.run.folder import RunFolder, write_atomically


class Tracker:
    """Appends to `metrics.jsonl`, a flushed line at a time, and mirrors the numbers into TensorBoard.

    A run that goes on from a checkpoint repeats the steps after it, so their earlier lines are removed first.

    Args:
        folder: of the run.
        step: steps done; later lines are dropped.
        tensorboard: whether to write event files too.
    """

    def __init__(self, folder: RunFolder, *, step: int, tensorboard: bool) -> None:
        kept = [line for line in folder.read_metrics() if line["step"] <= step]
        write_atomically(folder.metrics, "".join(_line(each) for each in kept))
        self._file = folder.metrics.open("a", encoding="utf-8")
        self._board = _open_board(folder.tensorboard, step) if tensorboard else None

    def write(self, step: int, values: Mapping[str, Any], *, prefix: str = "train") -> None:
        """One line; `values` must hold `step`. Numbers that are not finite are written as null, which JSON can say.

        Args:
            step: the axis of TensorBoard.
            values: of the line; numbers, or one mapping of numbers for an evaluation.
            prefix: of the names in TensorBoard.
        """
        self._file.write(_line(values))
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(f"{prefix}/{name}", value, step)
                elif isinstance(value, Mapping):
                    for each, number in value.items():
                        self._board.add_scalar(f"{name}/{each}", number, step)

    def close(self) -> None:
        """Flush and close everything."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(_finite(values), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open_board(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    # TensorBoard hides events at and after `purge_step` that an earlier attempt has written.
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
