"""How large a model is, and how much arithmetic a token takes; padding of the embeddings counts for neither."""

from torch import nn

from training.model.language_model import LanguageModel


def count_parameters(model: LanguageModel) -> tuple[int, int]:
    """Parameters in all (shared ones once), and those of them that are embedding tables of tokens or positions."""
    total = sum(parameter.numel() for parameter in model.parameters()) - model.padding.parameters
    tables = {
        id(module.weight): module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding)
    }
    tokens = model.causal.get_input_embeddings().weight
    if id(tokens) in tables:
        tables[id(tokens)] = model.padding.size * tokens.shape[1]
    return total, sum(tables.values())


def flops_per_token(model: LanguageModel, context_length: int) -> float:
    """Floating-point operations a trained token: 6 for each parameter in a matrix product, plus those of attention.

    The output embedding is a matrix product also where it shares the input's table; looking up is none. Attention
    counts 12 * layers * width * context_length, without halving for causality. Source: PaLM, arXiv 2204.02311,
    appendix B.
    """
    text = model.causal.config.get_text_config()
    total, tables = count_parameters(model)
    head = model.causal.get_output_embeddings().weight
    shared = head is model.causal.get_input_embeddings().weight
    products = total - tables + (model.padding.size * head.shape[1] if shared else 0)
    return 6.0 * products + 12.0 * int(text.num_hidden_layers) * int(text.hidden_size) * context_length
