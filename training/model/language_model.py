"""The network: a Hugging Face causal language model, and a value head where the objective asks for one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scorers.errors import UserError
from training.config import ModelConfig
from training.linear_loss import linear_loss
from training.model.sizes import SIZES
from training.objectives import Objective

VALUE_HEAD_FILE = "value_head.safetensors"
CONTROL_NOISE = 0.1  # of the embeddings' own standard deviation


class ValueHead(nn.Module):
    """V(t) = -sigmoid(w . h(t)): the expected reward from position t on, in (-1, 0); zero-initialised, without bias.

    Source: PHF (arXiv 2302.08582), section 2, AWR.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Values float32 [B, T] of hidden states [B, T, width]."""
        return -torch.sigmoid(nn.functional.linear(hidden, self.weight).squeeze(-1).float())


class LanguageModel(nn.Module):
    """A causal language model whose one `forward` runs every head, as DeepSpeed requires.

    Attributes:
        causal: the Hugging Face model.
        value_head: None where no objective needs it.
        has_linear_head: whether the logits are the output embedding's product with the last hidden state and nothing
            else, as in most architectures; then `loss` need not hold them all.
    """

    def __init__(self, causal: Any, *, value_head: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.value_head = ValueHead(causal.config.get_text_config().hidden_size) if value_head else None
        self.has_linear_head = False
        self._hidden: torch.Tensor | None = None
        if value_head:
            # What the output embedding sees, for every architecture: after the final norm, before any logit scaling.
            causal.get_output_embeddings().register_forward_pre_hook(self._keep_hidden)

    def _keep_hidden(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._hidden = inputs[0]

    def forward(
        self,
        input_ids: torch.Tensor,
        objective: Objective | None = None,
        scores: torch.Tensor | None = None,
        count: int | None = None,
    ) -> Any:
        """Logits [B, T, V], where `logits[:, t]` predicts token t+1, and values float32 [B, T] or None.

        With an objective, its loss and metrics instead, as a pair: `training.objectives.Loss`.

        Args:
            input_ids: int64 [B, T], without padding.
            objective: what the loss is of.
            scores: [B, T], of the tokens; for the loss.
            count: predicted tokens to divide by; for the loss, see `Objective.loss`.
        """
        if objective is None:
            return self._logits(input_ids)
        if scores is None:
            raise ValueError("a loss needs scores")
        if not self.has_linear_head:
            logits, values = self._logits(input_ids)
            result = objective.loss(logits, input_ids, scores, values, count=count)
            return result.loss, result.metrics
        hidden = self.causal.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        head = self.causal.get_output_embeddings()
        result = linear_loss(
            objective,
            hidden,
            head.weight,
            input_ids,
            scores,
            bias=getattr(head, "bias", None),
            values=None if self.value_head is None else self.value_head(hidden),
            count=count,
        )
        return result.loss, result.metrics

    def _logits(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits = self.causal(input_ids=input_ids, use_cache=False).logits
        if self.value_head is None:
            return logits, None
        hidden, self._hidden = self._hidden, None
        return logits, self.value_head(hidden)


@dataclass(frozen=True)
class Vocabulary:
    """What a model has to know of the tokenizer; `size` counts the control tokens, whose ids are `control_ids`."""

    size: int
    eos_id: int
    control_ids: tuple[int, ...] = ()


def max_positions(config: ModelConfig) -> int | None:
    """The longest context that a model has positions for; None where its config sets no limit.

    Raises:
        UserError: the model's name is unknown.
    """
    size = SIZES.get(config.name)
    if size is not None:
        return int(config.overrides.get("n_positions", config.overrides.get("max_position_embeddings", size.positions)))
    positions = getattr(_published_config(config).get_text_config(), "max_position_embeddings", None)
    return int(positions) if positions else None


def check_context(config: ModelConfig, context_length: int) -> None:
    """Refuse a context that a model has no positions for.

    Raises:
        UserError: names both numbers.
    """
    positions = max_positions(config)
    if positions is not None and context_length > positions:
        raise UserError(
            f"data.context_length is {context_length}, but model {config.name!r} has positions for {positions} tokens. "
            "Lower the first" + ("." if config.pretrained else ", or raise model.overrides.max_position_embeddings.")
        )


def build_model(
    config: ModelConfig,
    vocabulary: Vocabulary,
    *,
    value_head: bool = False,
    context_length: int | None = None,
    skeleton: bool = False,
) -> LanguageModel:
    """Build the model in float32 on the CPU; the result depends on the state of torch's generator.

    The embedding has a row for every token of the vocabulary, and rows of control tokens that are new start at the mean
    of the others plus small noise, so that a tag is at first nearly neutral.

    Args:
        config: which model.
        vocabulary: of the tokenizer.
        value_head: whether the objective needs values.
        context_length: refused when the model has fewer positions.
        skeleton: the same modules without numbers, on torch's meta device; whether the head is linear is not tried.

    Raises:
        UserError: unknown name, a config that cannot be built, or a context that is too long.
    """
    if context_length is not None:
        check_context(config, context_length)
    if skeleton:
        with torch.device("meta"):
            return LanguageModel(_skeleton(config, vocabulary), value_head=value_head)
    new = vocabulary.control_ids
    if config.pretrained:
        causal = _pretrained(config)
        # A conditional model's own are trained already.
        new = tuple(each for each in new if each >= causal.get_input_embeddings().num_embeddings)
        if causal.get_input_embeddings().num_embeddings < vocabulary.size:
            causal.resize_token_embeddings(vocabulary.size, mean_resizing=False)
        causal.config.eos_token_id = vocabulary.eos_id
    else:
        causal = _initialised(config, vocabulary)
    _initialise_control_rows(causal, new)
    model = LanguageModel(causal, value_head=value_head)
    model.has_linear_head = _has_linear_head(causal)
    return model


def checkpoint_activations(model: LanguageModel) -> None:
    """Keep of each layer only its input, and compute the layer again on the way back: less memory, a third more time.

    Raises:
        UserError: the architecture cannot.
    """
    try:
        model.causal.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError:
        raise UserError(
            f"training.activation_checkpointing: {type(model.causal).__name__} cannot compute its layers again. "
            "Set it to false."
        ) from None


def load_model(folder: Path, *, value_head: bool | None = None) -> LanguageModel:
    """Load an exported model folder (`training.model.export`) in float32.

    Args:
        folder: a Hugging Face folder.
        value_head: whether to load the value head; None where there is one.

    Raises:
        UserError: the folder is missing or cannot be loaded.
    """
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    file = folder / VALUE_HEAD_FILE
    with_values = file.is_file() if value_head is None else value_head
    try:
        causal = AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
        model = LanguageModel(causal, value_head=with_values)
        if model.value_head is not None:
            model.value_head.load_state_dict(load_file(file))
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"Cannot load a model from {folder}: {_first_line(error)}") from None
    return model


def count_parameters(model: LanguageModel) -> tuple[int, int]:
    """Parameters in all (shared ones once), and those of them that are embedding tables of tokens or positions."""
    total = sum(parameter.numel() for parameter in model.parameters())
    tables = {
        id(module.weight): module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding)
    }
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
    products = total - tables + (head.numel() if shared else 0)
    return 6.0 * products + 12.0 * int(text.num_hidden_layers) * int(text.hidden_size) * context_length


def _initialised(config: ModelConfig, vocabulary: Vocabulary) -> Any:
    from transformers import AutoModelForCausalLM, GPT2Config

    size = SIZES.get(config.name)
    published = GPT2Config(**size.fields()) if size is not None else _published_config(config)
    text = published.get_text_config()
    known = {**published.to_dict(), **text.to_dict(), **getattr(published, "attribute_map", {})}
    for key, value in config.overrides.items():
        if key not in known:
            raise UserError(f"model.overrides.{key}: {type(published).__name__} has no such field.")
        setattr(published, key, value)
    text.vocab_size = vocabulary.size
    for holder in (published, text):
        holder.bos_token_id = holder.eos_token_id = vocabulary.eos_id
        holder.pad_token_id = None
    try:
        return AutoModelForCausalLM.from_config(published, dtype=torch.float32)  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"Cannot build model {config.name!r}: {_first_line(error)} Check model.overrides.") from None


def _skeleton(config: ModelConfig, vocabulary: Vocabulary) -> Any:
    if config.pretrained:
        published = int(_published_config(config).get_text_config().vocab_size)
        vocabulary = Vocabulary(max(vocabulary.size, published), vocabulary.eos_id)
    return _initialised(config, vocabulary)


def _pretrained(config: ModelConfig) -> Any:
    from transformers import AutoModelForCausalLM

    if config.name in SIZES and not config.name.startswith("gpt2") and not Path(config.name).is_dir():
        raise UserError(
            f"model.pretrained: {config.name!r} is a size without published weights; give a checkpoint's path."
        )
    try:
        return AutoModelForCausalLM.from_pretrained(config.name, dtype=torch.float32, **config.overrides)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(_unknown(config.name, error)) from None


def _published_config(config: ModelConfig) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(config.name)
    except (OSError, ValueError) as error:
        raise UserError(_unknown(config.name, error)) from None


@torch.no_grad()
def _initialise_control_rows(causal: Any, control_ids: tuple[int, ...]) -> None:
    if not control_ids:
        return
    source, output = causal.get_input_embeddings().weight, causal.get_output_embeddings().weight
    for weight in [source] if output is source else [source, output]:
        others = torch.ones(len(weight), dtype=torch.bool)
        others[list(control_ids)] = False
        known = weight[others]
        noise = torch.randn(len(control_ids), weight.shape[1]) * known.std() * CONTROL_NOISE
        weight[list(control_ids)] = known.mean(dim=0) + noise


@torch.no_grad()
def _has_linear_head(causal: Any) -> bool:
    # Tried rather than known of each architecture: some scale or cap their logits, which no list would keep up with.
    head, training = causal.get_output_embeddings(), causal.training
    if type(head) is not nn.Linear or causal.base_model is causal:
        return False
    causal.eval()
    try:
        ids = torch.arange(4, device=head.weight.device).unsqueeze(0)
        logits = causal(input_ids=ids, use_cache=False).logits
        hidden = getattr(causal.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
        return hidden is not None and torch.allclose(head(hidden), logits, rtol=1e-4, atol=1e-5)
    finally:
        causal.train(training)


def _unknown(name: str, error: Exception) -> str:
    return (
        f"Cannot load model {name!r}: {_first_line(error)} model.name is one of {', '.join(SIZES)}, "
        "or the path or name of a Hugging Face causal language model."
    )


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return f"{line}."
