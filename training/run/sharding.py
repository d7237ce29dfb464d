"""ZeRO 3 from the first moment: rank 0 alone has made the weights, and every rank gets its part of each in turn."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from training.run.distributed import World, import_deepspeed


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
