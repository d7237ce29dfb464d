"""TensorBoard's event files, in the run's folder."""

from collections.abc import Mapping
from pathlib import Path


class TensorBoard:
    """Event files.

    Args:
        folder: of the files.
        step: steps done, 0 where a run starts again: TensorBoard hides what an earlier attempt has written after them.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """A scalar a name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
