"""ZeRO across ranks: shard a model from rank 0 for stage 3, and convert checkpoints to another number of ranks.

The conversion uses DeepSpeed's universal format, in which no state is partitioned.
"""

import contextlib
import io
import shutil
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from scorers.errors import IncompleteError, UserError
from training.distributed.world import World, import_deepspeed


def to_universal(source: Path, target: Path, checkpoint: Path | None = None) -> None:
    """Convert DeepSpeed's checkpoint `source` to the universal format in `target`, which is replaced.

    Errors name `checkpoint`, by default the parent of `source`. It needs disk space for about twice the weights and
    optimiser states, and the memory of one rank's part. Call it inside `training.engine.plain_loading`.

    Raises:
        UserError: a parameter's name leads out of the folder.
        IncompleteError: the disk is full or fails.
    """
    import_deepspeed()
    checkpoint = checkpoint or source.parent
    _check_names(source, checkpoint)
    from deepspeed.checkpoint import ds_to_universal

    settings = Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        # It would require patterns for tensor parallelism, which phf does not use.
        inject_missing_state=True,
    )
    try:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        # Suppress DeepSpeed's progress output.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ds_to_universal.main(settings)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError where its file writer fails
        shutil.rmtree(target, ignore_errors=True)
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise IncompleteError(
            f"{checkpoint} could not be converted for another number of ranks, in {checkpoint.parent}: {reason}. It is "
            "unchanged. Make room and run the same command again, or start as many ranks as wrote it."
        ) from error


def _check_names(source: Path, checkpoint: Path) -> None:
    # DeepSpeed creates a folder for each parameter's name, and for names that a mixture of experts lists elsewhere.
    for file in sorted(source.glob("*_states.pt")):
        for name in _keys(torch.load(file, map_location="cpu", mmap=True, weights_only=True)):
            if name in ("", ".", "..", "autoep_layers", "ds_autoep_layers") or "/" in name or "\0" in name:
                raise UserError(
                    f"The checkpoint {checkpoint} has a parameter with an unsafe name ({file.name}), which phf never "
                    "writes. It is not converted for another number of ranks."
                )


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (key for key in value if isinstance(key, str))
        value = value.values()
    if not isinstance(value, (str, bytes, torch.Tensor)) and isinstance(value, Iterable):
        for each in value:
            yield from _keys(each)


def shard(model: nn.Module, config: Mapping[str, Any], world: World, dtype: torch.dtype) -> None:
    """Partition rank 0's model among the ranks, parameter by parameter. Every rank calls it.

    A rank never holds more than its part and one module's parameters; rank 0 builds or loads the model in main memory,
    not on a GPU, and frees each parameter as it goes. The weights are created in one place so that they are the same as
    without ZeRO: a network initialised under `deepspeed.zero.Init` draws other random numbers.

    Args:
        model: whole, on the CPU of rank 0; on other ranks the same modules, whose tensors are replaced if on torch's
            meta device, else overwritten.
        config: DeepSpeed's.
        world: the ranks.
        dtype: of the parameters from here on.
    """
    partition = import_deepspeed().zero.Init
    offload = config["zero_optimization"].get("offload_param") or {}
    made: dict[nn.Parameter, nn.Parameter] = {}  # embeddings may be shared by modules
    for module in _children_first(model):
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                if parameter not in made:
                    empty = torch.empty(parameter.shape, dtype=dtype)
                    made[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                setattr(module, name, made[parameter])
            elif not hasattr(parameter, "ds_id"):
                parameter.data = parameter.data.to(dtype)
        for name, buffer in module.named_buffers(recurse=False):
            theirs = torch.empty_like(buffer, device=world.device) if buffer.is_meta else buffer.to(world.device)
            setattr(module, name, theirs.contiguous())
            # As bytes, because not every backend supports every dtype.
            dist.broadcast(getattr(module, name).reshape(-1).view(torch.uint8), 0)
        # Parameters of child modules are partitioned already, and skipped.
        partition(
            module=module,
            config_dict_or_path=dict(config),
            dtype=dtype,
            remote_device=offload.get("device"),
            pin_memory=bool(offload.get("pin_memory")),
        )


def _children_first(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from _children_first(child)
    if any(True for tensors in (module.parameters, module.buffers) for _ in tensors(recurse=False)):
        yield module
