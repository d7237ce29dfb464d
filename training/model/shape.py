"""Measure a model without allocating it: parameters, FLOPs, and activation memory for the backward pass."""

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

# CPU time for a trace: models that process tokens one by one would take minutes.
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class ModelShape:
    """Figures of a model at a precision and a context length.

    Attributes:
        name: the setting `model.name`.
        architecture: class of the Hugging Face model.
        layers, width, heads: of the transformer; heads None without attention.
        context_length: tokens per block.
        vocabulary: rows of the output embedding.
        parameters, parameters_embedding: all (shared ones once), and those in tables of tokens or positions.
        parameters_active: those that compute a token: not all in a mixture of experts.
        tied: whether the input and output embeddings share their weights.
        value_head: whether the model has one.
        linear_head: whether the loss is computed chunk by chunk, without all logits.
        flops_per_token: forward and backward.
        bytes_per_value: of the precision.
        kept: bytes that the layers save per block for the backward pass.
        kept_checkpointed: the same with activation checkpointing; None if the architecture does not support it.
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
    """Trace a block through the model with fake tensors, and count what autograd saves.

    This works for any architecture and attention without a formula for each. It takes about a second and no memory.
    The model is unusable afterwards: its tensors are replaced.

    Args:
        model: a skeleton from `training.model.language_model.build_model`.
        name: the setting `model.name`.
        context_length: tokens per block.
        dtype: that the model computes in.

    Raises:
        UserError: the model's computation depends on its weights, so that it cannot be traced.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    parameters, embedding = count_parameters(model)
    causal = model.causal
    size, head = dimensions(causal), causal.get_output_embeddings()
    tied = head.weight is causal.get_input_embeddings().weight
    # Judged by its type, as there are no logits to compare.
    is_linear = type(head) is nn.Linear and causal.base_model is not causal
    flops = flops_per_token(model, context_length)
    active = parameters - idle_parameters(model)
    # Grouped products of experts can be traced in half precision only; other precisions save as many numbers.
    traced = torch.bfloat16 if active < parameters else dtype
    # Tracing errors are reported below.
    getLogger("torch._subclasses.fake_tensor").setLevel(CRITICAL)
    with FakeTensorMode():
        _make_fake(causal, traced)
        causal.train()
        network = causal.base_model if is_linear else causal
        try:
            kept = _saved_bytes(network, context_length)
            try:
                checkpoint_activations(model)
                checkpointed = _saved_bytes(network, context_length)
            except UserError:
                checkpointed = None
        except _TooSlow:
            raise UserError(
                f"Memory and time of {type(causal).__name__} cannot be estimated: it processes tokens one by one "
                "because its kernels are not installed."
            ) from None
        except Exception as error:
            if is_stop(error):
                raise
            # An architecture that reads its values may raise any error.
            raise UserError(
                f"Memory and time of {type(causal).__name__} cannot be estimated: its computation depends on its "
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


def _make_fake(model: nn.Module, dtype: torch.dtype) -> None:
    # On the meta device attention would use its slowest implementation, which saves more than the others.
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


class _TooSlow(Exception):  # noqa: N818 - not an error: the trace is given up
    pass


def _saved_bytes(network: Any, context_length: int) -> int:
    own = {_storage(each) for each in [*network.parameters(), *network.buffers()]}
    found: dict[int, torch.UntypedStorage] = {}
    is_fused = getattr(network.config, "_attn_implementation", "eager") != "eager"

    until = time.process_time() + _PATIENCE_S

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if time.process_time() > until:
            raise _TooSlow
        # Transformers builds a causal mask while tracing; a real pass uses a flag of the fused kernels instead.
        is_mask = is_fused and tensor.shape == (1, 1, context_length, context_length)
        if not is_mask and _storage(tensor) not in own:
            # Keep a reference, so that no later storage reuses the address of a counted one.
            found[_storage(tensor)] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(input_ids=torch.zeros(1, context_length, dtype=torch.int64), use_cache=False)
    return sum(storage.nbytes() for storage in found.values())


def _storage(tensor: torch.Tensor) -> int:
    storage: int = tensor.untyped_storage()._cdata
    return storage
