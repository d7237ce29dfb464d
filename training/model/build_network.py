"""Build a network from a named size, a Hugging Face config, or a checkpoint."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from scorers.errors import UserError
from scorers.hugging_face import load_config, load_model, load_tokenizer
from training.config import ModelConfig
from training.model.sizes import SIZES
from training.model.vocabulary import Vocabulary

# Attention implementations outside torch, by the setting's value: package to import, and how to install it.
_ATTENTION_PACKAGES = {
    "flash_attention_2": ("flash_attn", "pip install flash-attn --no-build-isolation"),
    "flash_attention_3": ("flash_attn_interface", "the folder hopper of github.com/Dao-AILab/flash-attention"),
}

# Sizes that must be at least 1, as most configs and GPT-2's name them; some may be None and follow from others.
_COUNTS_OR_NONE = ("intermediate_size", "num_key_value_heads", "head_dim", "n_inner")
_COUNTS = (
    *("num_hidden_layers", "hidden_size", "num_attention_heads", "max_position_embeddings"),
    *("n_layer", "n_embd", "n_head", "n_positions"),
    *_COUNTS_OR_NONE,
)


def max_positions(config: ModelConfig) -> int | None:
    """Return the longest context that a model has positions for; None if its config sets no limit.

    Raises:
        UserError: the model's name is unknown.
    """
    size = SIZES.get(config.name)
    if size is not None:
        _check_sizes(config)
        return int(config.overrides.get("n_positions", config.overrides.get("max_position_embeddings", size.positions)))
    positions = getattr(_published_config(config).get_text_config(), "max_position_embeddings", None)
    # XLNet has -1 for no limit.
    return int(positions) if positions and positions > 0 else None


def check_context(config: ModelConfig, context_length: int) -> None:
    """Refuse a context that a model has no positions for.

    Raises:
        UserError: names both numbers.
    """
    positions = max_positions(config)
    if positions is not None and context_length > positions:
        raise UserError(
            f"data.context_length is {context_length}, but model {config.name!r} has positions for {positions} tokens. "
            "Lower data.context_length"
            + ("." if config.pretrained else ", or raise model.overrides.max_position_embeddings.")
        )


def check_attention(config: ModelConfig, device: torch.device, *, half_precision: bool) -> None:
    """Refuse an attention implementation that cannot run here, before anything is loaded.

    Raises:
        UserError: names what is missing.
    """
    if config.attention not in _ATTENTION_PACKAGES:
        return
    setting = f"model.attention={config.attention}"
    if device.type != "cuda":
        raise UserError(f"{setting} needs a GPU, and there is none here. Set model.attention=auto.")
    if not half_precision:
        raise UserError(
            f"{setting} only computes in bf16 or fp16. Set training.precision=bf16, or model.attention=sdpa."
        )
    package, source = _ATTENTION_PACKAGES[config.attention]
    if find_spec(package) is None:
        raise UserError(f"{setting} needs the package {package} ({source}). Install it, or set model.attention=sdpa.")


def build_initialised(config: ModelConfig, vocabulary: Vocabulary) -> Any:
    """Build a Hugging Face model with random float32 weights, and embeddings of the vocabulary's size.

    Raises:
        UserError: the name is unknown, or the config cannot be built.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM, GPT2Config

    size = SIZES.get(config.name)
    published = GPT2Config(**size.fields()) if size is not None else _published_config(config)
    text = published.get_text_config()
    known = {**published.to_dict(), **text.to_dict(), **getattr(published, "attribute_map", {})}
    _check_sizes(config)
    for key, value in config.overrides.items():
        if key not in known:
            raise UserError(f"model.overrides.{key}: {type(published).__name__} has no such field.")
        try:
            setattr(published, key, value)
        except (StrictDataclassError, TypeError, ValueError, AttributeError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"model.overrides.{key}: {lines[-1].strip()}. Check the value.") from None
    text.vocab_size = vocabulary.size
    vocabulary.set_bos_and_eos(published)
    for holder in (published, text):
        try:
            holder.pad_token_id = vocabulary.pad_id
        except StrictDataclassError:
            # A few configs require one.
            holder.pad_token_id = vocabulary.eos_id
    try:
        causal = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            published, dtype=torch.float32, **_attention(config)
        )
        if text.pad_token_id == vocabulary.eos_id:
            # EOS must be learnt, like any other token.
            causal.get_input_embeddings().padding_idx = None
        return causal
    except (ImportError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError, KeyError) as error:
        setting = "model.overrides" if config.attention == "auto" else "model.overrides and model.attention"
        reason = f"there is no {error}." if isinstance(error, KeyError) else first_line(error)
        raise UserError(f"Cannot build model {config.name!r}: {reason} Check {setting}.") from None


def load_pretrained(config: ModelConfig, *, skeleton: bool = False) -> Any:
    """Load a checkpoint's Hugging Face model in float32, or only its modules.

    Args:
        config: names the checkpoint.
        skeleton: read only the config, and create the weights on the default device (meta, to take no memory).

    Raises:
        UserError: it cannot be loaded.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if config.name in SIZES and not config.name.startswith("gpt2") and not Path(config.name).is_dir():
        raise UserError(
            f"model.pretrained: {config.name!r} is a size without published weights; give a checkpoint's path."
        )
    _check_sizes(config)
    try:
        shape = load_config(config.name, **config.overrides)
        if skeleton:
            return AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                shape, dtype=torch.float32, **_attention(config)
            )
        return load_model(AutoModelForCausalLM, config.name, config=shape, dtype=torch.float32, **_attention(config))
    except SafetensorError as error:
        raise UserError(
            f"Cannot load the weights of model {config.name!r}: a file is damaged or truncated "
            f"({first_line(error).rstrip('.')}). Restore it."
        ) from None
    except (
        *(ImportError, OSError, ValueError, TypeError, AttributeError),
        *(RuntimeError, ArithmeticError, KeyError, StrictDataclassError),
    ) as error:
        raise UserError(_describe_failure(config.name, error)) from None


def _check_sizes(config: ModelConfig) -> None:
    """Refuse sizes below 1, and an override of the vocabulary size."""
    for key, value in config.overrides.items():
        if key == "vocab_size":
            raise UserError(f"model.overrides.{key}: the tokenizer decides it. Remove it, or set data.vocab_size.")
        if key not in _COUNTS or (value is None and key in _COUNTS_OR_NONE):
            continue
        if type(value) is not int or value < 1:
            raise UserError(f"model.overrides.{key}={value!r} must be a whole number of at least 1.")


def known_ids(config: ModelConfig) -> set[int]:
    """Return the ids that a checkpoint's own tokenizer has tokens for; empty if it has no tokenizer."""
    try:
        return set(load_tokenizer(config.name).get_vocab().values())
    except Exception:  # noqa: BLE001 - whatever transformers or its hub client raises where there is none
        return set()


def use_attention(causal: Any, config: ModelConfig) -> None:
    """Switch a model from torch's attention to another package's, for a GPU in half precision.

    Before, the model is loaded and tried on a CPU, where such a package cannot run.

    Raises:
        UserError: the architecture does not support it.
    """
    if config.attention not in _ATTENTION_PACKAGES:
        return
    try:
        causal.set_attn_implementation(config.attention)
    except (ImportError, ValueError) as error:
        raise UserError(f"model.attention={config.attention}: {first_line(error)} Set model.attention=sdpa.") from None


def _attention(config: ModelConfig) -> dict[str, str]:
    if config.attention == "auto":
        return {}
    return {"attn_implementation": "sdpa" if config.attention in _ATTENTION_PACKAGES else config.attention}


def _published_config(config: ModelConfig) -> Any:
    try:
        return load_config(config.name)
    except (OSError, ValueError) as error:
        raise UserError(_describe_failure(config.name, error)) from None


def _describe_failure(name: str, error: Exception) -> str:
    return (
        f"Cannot load model {name!r}: {first_line(error)} model.name is one of {', '.join(SIZES)}, "
        "or the path or name of a Hugging Face causal language model."
    )


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, as a sentence."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return f"{line}."
