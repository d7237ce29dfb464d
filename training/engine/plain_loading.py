"""Reading checkpoints without running code: a run may come from somebody else, and a pickle can call anything.

The hashes of a checkpoint's marker prove that its files are whole, not who made them.

Nor does it matter how the folder is called, although DeepSpeed makes patterns of its path.
"""

import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from scorers.errors import UserError
from scorers.paths import shown
from training.distributed.failures import is_failure
from training.distributed.world import import_deepspeed

# What torch and DeepSpeed raise over values of other types, shapes and sizes than they expect.
_MISFITS = (AttributeError, EOFError, IndexError, KeyError, RuntimeError, TypeError, ValueError)

# What means nothing but itself in the patterns that DeepSpeed makes of a path.
_PLAIN = re.compile(r"[\w/.-]+")


@contextmanager
def plain_loading(place: Path) -> Iterator[Path]:
    """Make every `torch.load` in the block, DeepSpeed's own too, one of tensors and plain values.

    It hands out another path of the checkpoint for DeepSpeed, in which nothing is special; it holds for the block.

    Args:
        place: the checkpoint.

    Raises:
        UserError: a file holds other objects, lacks what DeepSpeed looks for, or holds what does not fit.
    """
    original = torch.load
    where = ""

    def load(file: Any, *args: Any, **options: Any) -> Any:
        nonlocal where
        where = f" in {shown(Path(file).name)}" if isinstance(file, str | Path) else ""
        return original(file, *args, **{**options, "weights_only": True})

    try:
        # Each call of DeepSpeed asks for the unpickler that runs anything, so no setting of torch reaches it.
        with (
            torch.serialization.safe_globals(_deepspeed_classes()),
            mock.patch.object(torch, "load", load),
            plain_path(place.parent) as folder,
        ):
            yield folder / place.name
    except pickle.UnpicklingError:
        raise UserError(
            f"The checkpoint {place} holds objects{where} that are neither tensors nor plain values. Reading them "
            "could run code, so it is not loaded. No checkpoint that phf writes has any."
        ) from None
    except _MISFITS as error:
        if is_failure(error):
            raise
        raise UserError(
            f"The checkpoint {place} is not as this version writes them ({type(error).__name__}{where}): it was "
            "changed, or another version of DeepSpeed wrote it. Take another checkpoint, or the versions that wrote it."
        ) from error


@contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """Another path of a folder, in which nothing is special to DeepSpeed; it holds for the block."""
    if _PLAIN.fullmatch(str(folder)):
        yield folder
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _deepspeed_classes() -> list[Any]:
    """What DeepSpeed's optimisers and its own configuration leave in a checkpoint; making one calls nothing."""
    import_deepspeed()
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.runtime.zero.offload_config import OffloadDeviceEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, OffloadDeviceEnum, ZeroStageEnum, fragment_address]
