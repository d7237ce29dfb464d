"""ZeRO 3 from the first moment: rank 0 alone has made the weights, and every rank gets its part of each in turn.

A checkpoint of some ranks for a run of others: DeepSpeed's universal format, in which no state is cut by ranks.
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
    """Write DeepSpeed's checkpoint `source` to `target` anew, each parameter with its optimiser state whole.

    What lies at `target` is replaced. Errors name `checkpoint`, by default the folder of `source`. It needs room for
    about twice the weights and optimiser states, and the memory of one rank's part. The caller has
    `training.engine.plain_loading` around it.

    Raises:
        UserError: a parameter has a name that leads out of the folder.
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
        # It wants the patterns of tensor parallelism, of which there is none here.
        inject_missing_state=True,
    )
    try:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        # It prints every step to a terminal that is not its own.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ds_to_universal.main(settings)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError where its file writer fails
        shutil.rmtree(target, ignore_errors=True)
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise IncompleteError(
            f"{checkpoint} could not be rewritten for another number of ranks, in {checkpoint.parent}: {reason}. It is "
            "untouched. Make room and run the same command again, or start as many ranks as wrote it."
        ) from error


def _check_names(source: Path, checkpoint: Path) -> None:
    # DeepSpeed makes a folder of each parameter's name, and of names that a mixture of experts lists elsewhere.
    for file in sorted(source.glob("*_states.pt")):
        for name in _keys(torch.load(file, map_location="cpu", mmap=True)):
            if name in ("", ".", "..", "autoep_layers", "ds_autoep_layers") or "/" in name or "\0" in name:
                raise UserError(
                    f"The checkpoint {checkpoint} names a parameter in a way that phf never does ({file.name}). It "
                    "is not rewritten for another number of ranks."
                )


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (key for key in value if isinstance(key, str))
        value = value.values()
    if not isinstance(value, (str, bytes, torch.Tensor)) and isinstance(value, Iterable):
        for each in value:
            yield from _keys(each)


def shard(model: nn.Module, config: Mapping[str, Any], world: World, dtype: torch.dtype) -> None:
    """Partition a model among the ranks, parameter by parameter, as rank 0 has it. Every rank calls it.

    So a rank never holds more than its part and one module's parameters; rank 0 gives away as it goes what it has
    built or read, which it does in the memory of its machine, not of a GPU. That the weights are made in one place is
    what makes them the same as without ZeRO: a network initialised piece by piece under `deepspeed.zero.Init` draws
    other random numbers.

    Args:
        model: on rank 0 whole, on the CPU; on the others the same modules, of which numbers on torch's meta device are
            replaced and all others overwritten.
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
            # As bytes, because not every backend knows every dtype.
            dist.broadcast(getattr(module, name).reshape(-1).view(torch.uint8), 0)
        # Parameters of children are partitioned by now, and passed over.
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
