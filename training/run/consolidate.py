"""The whole weights of a model out of a checkpoint, however DeepSpeed has cut them, without ranks or a GPU."""

import contextlib
import io
from pathlib import Path

import torch
from torch import Tensor

from training.run.engine import TAG
from training.run.plain_loading import plain_loading

_WHOLE = "mp_rank_00_model_states.pt"
_PARTITIONED = "zero_pp_rank_0_mp_rank_00_model_states.pt"


def checkpoint_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of the `LanguageModel`, on the CPU and in the precision of the training.

    Args:
        folder: of a checkpoint whose files were verified.

    Raises:
        UserError: it holds other objects than tensors and plain values.
    """
    with plain_loading(folder) as place:
        return _checkpoint_weights(place)


def _checkpoint_weights(folder: Path) -> dict[str, Tensor]:
    place = folder / TAG
    if (place / _WHOLE).is_file():
        state = torch.load(place / _WHOLE, map_location="cpu", mmap=True)
        return dict(state["module"])
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    settings = torch.load(place / _PARTITIONED, map_location="cpu", mmap=True)["ds_config"]
    # It prints every step to a terminal that is not its own.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        weights = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=TAG)
    # ZeRO 3 keeps the weights that are trained in float32 only in pieces, and rounds them for each step.
    return {name: each.to(_precision(settings)) for name, each in weights.items()}


def _precision(settings: dict[str, dict[str, bool]]) -> torch.dtype:
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if settings.get(name, {}).get("enabled"):
            return dtype
    return torch.float32
