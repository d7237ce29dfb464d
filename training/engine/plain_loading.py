"""Load checkpoints without running code: a run may come from somebody else, and a pickle can call anything.

The hashes in a checkpoint's marker prove that its files are complete, not who made them. The folder may have any name,
although DeepSpeed uses its path in patterns.
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
from scorers.paths import escape_path
from training.distributed.failures import is_failure
from training.distributed.world import import_deepspeed

# What torch and DeepSpeed raise for unexpected types, shapes and sizes.
_MISFITS = (AttributeError, EOFError, IndexError, KeyError, RuntimeError, TypeError, ValueError)

# Paths without special characters in the patterns that DeepSpeed makes of them.
_PLAIN = re.compile(r"[\w/.-]+")


@contextmanager
def plain_loading(place: Path) -> Iterator[Path]:
    """Restrict every `torch.load` in the block, also DeepSpeed's, to tensors and plain values.

    Yields a path of the checkpoint without special characters for DeepSpeed, valid inside the block.

    Args:
        place: the checkpoint.

    Raises:
        UserError: a file contains other objects, lacks what DeepSpeed expects, or does not fit.
    """
    original = torch.load
    where = ""

    def load(file: Any, *args: Any, **options: Any) -> Any:
        nonlocal where
        where = f" in {escape_path(Path(file).name)}" if isinstance(file, str | Path) else ""
        return original(file, *args, **{**options, "weights_only": True})

    try:
        # DeepSpeed asks torch for pickles in each call, which overrides any setting of torch.
        with (
            torch.serialization.safe_globals(_deepspeed_classes()),
            mock.patch.object(torch, "load", load),
            plain_path(place.parent) as folder,
        ):
            yield folder / place.name
    except pickle.UnpicklingError:
        raise UserError(
            f"The checkpoint {place} contains objects{where} that are neither tensors nor plain values. Loading them "
            "could run code, so it is refused. Checkpoints written by phf never contain any."
        ) from None
    except _MISFITS as error:
        if is_failure(error):
            raise
        raise UserError(
            f"The checkpoint {place} does not have the format of this version ({type(error).__name__}{where}): it was "
            "changed, or another version of DeepSpeed wrote it. Use another checkpoint, or the versions that wrote it."
        ) from error


@contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """Yield a path of a folder without characters that are special to DeepSpeed, valid inside the block."""
    if _PLAIN.fullmatch(str(folder)):
        yield folder
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _deepspeed_classes() -> list[Any]:
    """Return the classes that DeepSpeed writes into a checkpoint; constructing them has no side effects."""
    import_deepspeed()
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.runtime.zero.offload_config import OffloadDeviceEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, OffloadDeviceEnum, ZeroStageEnum, fragment_address]
