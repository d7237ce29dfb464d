"""What a model is made of before it has weights: parameters, arithmetic, and what is kept for the way back."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from scorers.errors import UserError
from training.config import ModelConfig
from training.model.language_model import (
    LanguageModel,
    checkpoint_activations,
    count_parameters,
    flops_per_token,
    outline,
)


@dataclass(frozen=True)
class ModelShape:
    """What is known of a model, in a precision and at a context, without memory for it.

    Attributes:
        name: of the model's setting.
        architecture: class of the Hugging Face model.
        layers, width, heads: of the transformer.
        context_length: tokens a block.
        vocabulary: rows of the output embedding.
        parameters, parameters_embedding: all, shared ones once; those of them in tables of tokens or positions.
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
    heads: int
    context_length: int
    vocabulary: int
    parameters: int
    parameters_embedding: int
    tied: bool
    value_head: bool
    linear_head: bool
    flops_per_token: float
    bytes_per_value: int
    kept: int
    kept_checkpointed: int | None


def trace_shape(
    config: ModelConfig, vocabulary: int, *, context_length: int, dtype: torch.dtype, value_head: bool = False
) -> ModelShape:
    """Build the model of tensors without content, pass a block through it, and count what autograd keeps.

    That holds for any architecture and attention without a formula for each. It takes about a second, and no memory.

    Args:
        config: which model; of a checkpoint only its config is read.
        vocabulary: entries of the tokenizer, control tokens included.
        context_length: tokens a block.
        dtype: that the model computes in.
        value_head: whether the objective needs values.

    Raises:
        UserError: the model is unknown, or decides by its numbers what it computes, which cannot be traced.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = outline(config, vocabulary, dtype, value_head=value_head).train()
        try:
            kept = _kept(model, context_length)
            try:
                checkpoint_activations(model)
                checkpointed = _kept(model, context_length)
            except UserError:
                checkpointed = None
        except (RuntimeError, NotImplementedError) as error:
            raise UserError(
                f"{type(model.causal).__name__} cannot be planned for: what it computes depends on its weights "
                f"({type(error).__name__}). Set training.micro_batch_size yourself."
            ) from None
        text = model.causal.config.get_text_config()
        head = model.causal.get_output_embeddings().weight
        parameters, embedding = count_parameters(model)
        return ModelShape(
            name=config.name,
            architecture=type(model.causal).__name__,
            layers=int(text.num_hidden_layers),
            width=int(text.hidden_size),
            heads=int(text.num_attention_heads),
            context_length=context_length,
            vocabulary=len(head),
            parameters=parameters,
            parameters_embedding=embedding,
            tied=head is model.causal.get_input_embeddings().weight,
            value_head=value_head,
            linear_head=model.has_linear_head,
            flops_per_token=flops_per_token(model, context_length),
            bytes_per_value=dtype.itemsize,
            kept=kept,
            kept_checkpointed=checkpointed,
        )


def _kept(model: LanguageModel, context_length: int) -> int:
    base: Any = model.causal.base_model if model.has_linear_head else model.causal
    own = {_storage(each) for each in [*model.parameters(), *model.buffers()]}
    found: dict[int, torch.UntypedStorage] = {}
    is_fused = getattr(model.causal.config, "_attn_implementation", "eager") != "eager"

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # Transformers makes a mask for what it takes for a trace; really a causal one is a flag of the fused kernels.
        is_mask = is_fused and tensor.shape == (1, 1, context_length, context_length)
        if not is_mask and _storage(tensor) not in own:
            # Held, so that no later storage takes the place of one that was counted.
            found[_storage(tensor)] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        base(input_ids=torch.zeros(1, context_length, dtype=torch.int64), use_cache=False)
    return sum(storage.nbytes() for storage in found.values())


def _storage(tensor: torch.Tensor | nn.Parameter) -> int:
    return tensor.untyped_storage()._cdata
