"""TensorBoard's event files, in the run's folder."""

import time
from collections.abc import Mapping
from pathlib import Path


class TensorBoard:
    """Event files.

    Args:
        folder: of the files.
        step: steps done, 0 where a run starts again: TensorBoard hides what an earlier attempt has written after them.
        goes_on: whether what was written up to there is whole.
    """

    run_id = "tensorboard"

    def __init__(self, folder: Path, step: int, *, goes_on: bool = False) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.goes_on = goes_on
        # Event files are read in the order of the seconds in their names.
        while any(f".tfevents.{int(time.time())}." in file.name for file in _files(folder)):
            time.sleep(0.05)
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """A scalar a name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
