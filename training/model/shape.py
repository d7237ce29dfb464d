"""What a model is made of before it has weights: parameters, arithmetic, and what is kept for the way back."""

import time
from dataclasses import dataclass
from logging import CRITICAL, getLogger
from typing import Any

import torch
from torch import nn

from scorers.errors import UserError
from scorers.stopping import is_stop
from training.model.counting import count_parameters, dimensions, flops_per_token, idle_parameters
from training.model.language_model import LanguageModel, checkpoint_activations

# Of a core, for a trace: those that go through tokens one by one would take minutes.
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class ModelShape:
    """What is known of a model, in a precision and at a context, without memory for it.

    Attributes:
        name: of the model's setting.
        architecture: class of the Hugging Face model.
        layers, width, heads: of the transformer; heads None without attention.
        context_length: tokens a block.
        vocabulary: rows of the output embedding.
        parameters, parameters_embedding: all, shared ones once; those of them in tables of tokens or positions.
        parameters_active: those that compute a token: of a mixture of experts not all.
        tied: whether the output embedding is the input's.
        value_head: whether there is one.
        linear_head: whether the loss comes chunk by chunk, without all logits.
        flops_per_token: forward and backward.
        bytes_per_value: of the precision.
        kept: bytes that the layers keep of one block for the way back.
        kept_checkpointed: the same with activation checkpointing; None where the architecture cannot.
    """

    name: str
    architecture: str
    layers: int
    width: int
    heads: int | None
    context_length: int
    vocabulary: int
    parameters: int
    parameters_embedding: int
    parameters_active: int
    tied: bool
    value_head: bool
    linear_head: bool
    flops_per_token: float
    bytes_per_value: int
    kept: int
    kept_checkpointed: int | None


def trace_shape(model: LanguageModel, name: str, *, context_length: int, dtype: torch.dtype) -> ModelShape:
    """Pass a block of no content through a model of no content, and count what autograd keeps.

    That holds for any architecture and attention without a formula for each. It takes about a second, and no memory.
    The model is used up: its tensors are replaced.

    Args:
        model: of `training.model.language_model.build_model`, a skeleton.
        name: of the model's setting.
        context_length: tokens a block.
        dtype: that the model computes in.

    Raises:
        UserError: what the model computes depends on its numbers, so that it cannot be traced.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    parameters, embedding = count_parameters(model)
    causal = model.causal
    size, head = dimensions(causal), causal.get_output_embeddings()
    tied = head.weight is causal.get_input_embeddings().weight
    # Told by its kind, as there are no logits to look at.
    is_linear = type(head) is nn.Linear and causal.base_model is not causal
    flops = flops_per_token(model, context_length)
    active = parameters - idle_parameters(model)
    # Grouped products of experts are traced in half precision only; in another, what is kept is as many numbers.
    traced = torch.bfloat16 if active < parameters else dtype
    # What torch cannot trace is reported below.
    getLogger("torch._subclasses.fake_tensor").setLevel(CRITICAL)
    with FakeTensorMode():
        _without_memory(causal, traced)
        causal.train()
        network = causal.base_model if is_linear else causal
        try:
            kept = _kept(network, context_length)
            try:
                checkpoint_activations(model)
                checkpointed = _kept(network, context_length)
            except UserError:
                checkpointed = None
        except _Endless:
            raise UserError(
                f"Memory and time of {type(causal).__name__} cannot be estimated: it computes tokens one after the "
                "other where its own kernels are not installed."
            ) from None
        except Exception as error:
            if is_stop(error):
                raise
            # Whatever an architecture raises that looks at its numbers.
            raise UserError(
                f"Memory and time of {type(causal).__name__} cannot be estimated: what it computes depends on its "
                f"weights ({type(error).__name__})."
            ) from None
    wider = dtype.itemsize / traced.itemsize
    return ModelShape(
        name=name,
        architecture=type(causal).__name__,
        layers=size.layers,
        width=size.width,
        heads=size.heads,
        context_length=context_length,
        vocabulary=len(head.weight),
        parameters=parameters,
        parameters_embedding=embedding,
        parameters_active=active,
        tied=tied,
        value_head=model.value_head is not None,
        linear_head=is_linear,
        flops_per_token=flops,
        bytes_per_value=dtype.itemsize,
        kept=round(wider * kept),
        kept_checkpointed=None if checkpointed is None else round(wider * checkpointed),
    )


def _without_memory(model: nn.Module, dtype: torch.dtype) -> None:
    # On the meta device attention would take its slowest way, which keeps what the others do not.
    made: dict[int, Any] = {}
    for module in model.modules():
        for holder in (module._parameters, module._buffers):
            for name, tensor in holder.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake = torch.empty(tensor.shape, dtype=dtype if tensor.is_floating_point() else tensor.dtype)
                    made[id(tensor)] = nn.Parameter(fake) if isinstance(tensor, nn.Parameter) else fake
                holder[name] = made[id(tensor)]


class _Endless(Exception):  # noqa: N818 - no error: a trace that is given up
    pass


def _kept(network: Any, context_length: int) -> int:
    own = {_storage(each) for each in [*network.parameters(), *network.buffers()]}
    found: dict[int, torch.UntypedStorage] = {}
    is_fused = getattr(network.config, "_attn_implementation", "eager") != "eager"

    until = time.process_time() + _PATIENCE_S

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if time.process_time() > until:
            raise _Endless
        # Transformers makes a mask for what it takes for a trace; really a causal one is a flag of the fused kernels.
        is_mask = is_fused and tensor.shape == (1, 1, context_length, context_length)
        if not is_mask and _storage(tensor) not in own:
            # Held, so that no later storage takes the place of one that was counted.
            found[_storage(tensor)] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(input_ids=torch.zeros(1, context_length, dtype=torch.int64), use_cache=False)
    return sum(storage.nbytes() for storage in found.values())


def _storage(tensor: torch.Tensor) -> int:
    storage: int = tensor.untyped_storage()._cdata
    return storage
