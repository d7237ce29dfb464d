"""Count a model's parameters and the FLOPs per token; padding of the embeddings counts for neither."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from training.model.language_model import LanguageModel

# Names that configs and routers use for the number of experts per token.
_CHOSEN = ("num_experts_per_tok", "top_k", "topk", "moe_top_k", "moe_topk", "moe_k")
# Words in the names of layer kinds without attention.
_WITHOUT_ATTENTION = ("linear", "mamba", "conv", "recurrent", "ssm", "mlp", "moe")


@dataclass(frozen=True)
class Dimensions:
    """Layers, width of the hidden states, and attention heads; None for an architecture without attention."""

    layers: int
    width: int
    heads: int | None


def dimensions(causal: Any) -> Dimensions:
    """Read the dimensions of a Hugging Face causal language model from its config."""
    text = causal.config.get_text_config(decoder=True)
    heads = getattr(text, "num_attention_heads", None)
    width = getattr(text, "hidden_size", None) or causal.get_input_embeddings().weight.shape[1]
    return Dimensions(
        int(getattr(text, "num_hidden_layers", 1)),
        int(width),
        int(heads) if isinstance(heads, int) else max(heads, default=None) if heads else None,
    )


def count_parameters(model: LanguageModel) -> tuple[int, int]:
    """Count all parameters (shared ones once), and those in embedding tables of tokens or positions."""
    total = sum(parameter.numel() for parameter in model.parameters()) - model.padding.parameters
    tables = {
        id(module.weight): module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding)
    }
    tokens = model.causal.get_input_embeddings().weight
    if id(tokens) in tables:
        tables[id(tokens)] = model.padding.size * tokens.shape[1]
    return total, sum(tables.values())


def idle_parameters(model: LanguageModel) -> int:
    """Count the parameters of experts that are idle for a token: with k of n experts chosen, the share 1 - k / n.

    Experts that compute every token, such as DeepSeek's shared ones, and layers without experts are separate modules
    and do not count. 0 without experts.
    """
    return sum(
        parameters - parameters * chosen // experts for parameters, chosen, experts in _experts(model.causal) if chosen
    )


def describe_experts(model: LanguageModel) -> str | None:
    """Describe how many experts compute a token, such as `2 of 8`; None without experts."""
    kinds = sorted({f"{chosen or experts} of {experts}" for _, chosen, experts in _experts(model.causal)})
    return ", ".join(kinds) or None


def flops_per_token(model: LanguageModel, context_length: int) -> float:
    """Return the FLOPs per trained token: 6 for each parameter in a matrix product, plus those of attention.

    The output embedding is a matrix product even if it shares the input's table; an embedding lookup is not. Experts
    count in proportion to how often they compute a token. Attention counts 12 * width * context_length per layer,
    without halving for causality; a sliding window replaces the context length, and layers of another kind, such as
    Mamba's, count by their parameters alone. Source: PaLM, arXiv 2204.02311, appendix B.
    """
    total, tables = count_parameters(model)
    head = model.causal.get_output_embeddings().weight
    shared = head is model.causal.get_input_embeddings().weight
    products = total - tables + (model.padding.size * head.shape[1] if shared else 0) - idle_parameters(model)
    width = dimensions(model.causal).width
    return 6.0 * products + 12.0 * width * sum(_tokens_attended_to(model.causal, context_length))


def _tokens_attended_to(causal: Any, context_length: int) -> Iterator[int]:
    """Yield, for each layer with attention, how many tokens a token attends to."""
    text, size = causal.config.get_text_config(decoder=True), dimensions(causal)
    window = getattr(text, "sliding_window", None) or getattr(text, "attention_window_size", None) or context_length
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None)
    if not kinds:
        windowed = getattr(text, "use_sliding_window", True)
        yield from [min(context_length, window if windowed else context_length)] * (size.layers if size.heads else 0)
        return
    for kind in kinds[: size.layers]:
        if any(word in kind for word in ("sliding", "chunked", "local")):
            yield min(context_length, window)
        elif not any(word in kind for word in _WITHOUT_ATTENTION):
            yield context_length


def _experts(causal: Any) -> Iterator[tuple[int, int, int]]:
    """Yield, for each layer of experts, their parameters, the experts per token (0 if unknown), and their number.

    transformers holds the weights of all experts of a layer in one module, with one row per expert in each tensor.
    """
    config = causal.config.get_text_config(decoder=True)
    modules: Mapping[str, nn.Module] = dict(causal.named_modules())
    for name, module in modules.items():
        tensors = [each for each in module.parameters(recurse=False) if each.ndim > 1]
        if not type(module).__name__.endswith("Experts") or not tensors:
            continue
        experts = len(tensors[0])
        around = modules[name.rpartition(".")[0]]
        holders = [around, *(each for each in around.children() if each is not module), config]
        found = [getattr(each, key, None) for each in holders for key in _CHOSEN]
        chosen = next((each for each in found if isinstance(each, int) and not isinstance(each, bool)), 0)
        yield sum(each.numel() for each in tensors if len(each) == experts), min(chosen, experts), experts
