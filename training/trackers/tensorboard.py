"""The TensorBoard tracker: event files in the run's folder."""

import time
from collections.abc import Mapping
from pathlib import Path


class TensorBoard:
    """Writes event files.

    Args:
        folder: folder of the files.
        step: steps done so far: TensorBoard hides later steps that an earlier process wrote.
        continues: whether the files are complete up to that step.
    """

    run_id = "tensorboard"

    def __init__(self, folder: Path, step: int, *, continues: bool = False) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.continues = continues
        # TensorBoard orders event files by the seconds in their names: wait for a new second.
        while any(f".tfevents.{int(time.time())}." in file.name for file in _files(folder)):
            time.sleep(0.05)
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write one scalar per name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
