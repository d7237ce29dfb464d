"""Tiny configs, made from the config class of each architecture."""

from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

KINDS = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

# Names of size fields, and the small values they get in configs that have them.
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")
_LAYERS += ("num_decoder_layers", "num_encoder_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads")
_HEADS += ("num_decoder_attention_heads", "num_encoder_attention_heads")
_WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "intermediate_size", "n_inner", "ffn_dim", "dff")
_WIDTHS += ("decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size", "lru_width", "embedding_size")
_WIDTHS += ("input_embedding_size", "output_embedding_size")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")
_POSITIONS += ("max_target_positions",)
_SMALL: dict[str, Any] = {
    **dict.fromkeys(_LAYERS, 2),
    **dict.fromkeys(_HEADS, 4),
    **dict.fromkeys(_WIDTHS, 64),
    **dict.fromkeys(_POSITIONS, 160),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "num_experts_per_token", "linear_num_key_heads"), 2),
    **dict.fromkeys(("head_dim", "sliding_window", "attention_window_size", "kv_lora_rank", "v_head_dim"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_chunk_size", "chunk_size"), 16),
    **dict.fromkeys(("mamba_d_head", "rotary_dim"), 16),
    **dict.fromkeys(("state_size", "mamba_d_state", "mamba_n_heads", "qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("first_k_dense_replace", "n_group", "topk_group"), 1),
    "vocab_size": 300,
    "is_decoder": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
# For compressed attention, whose heads have separate sizes.
_LATENT = {"head_dim": None, "num_key_value_heads": 4}

# Further values that an architecture's own checks require; None keeps the default of a field.
_OTHERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa"), _LATENT),
    "longcat_flash": {**_LATENT, "head_dim": 8, "n_routed_experts": 4, "expert_ffn_hidden_size": 32, "moe_topk": 2},
    "youtu": _LATENT,
    "bailing_hybrid": {"n_group": 1, "topk_group": 1, "num_expert_group": 1},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {"num_key_value_heads": 4},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16},
    "gemma3n_text": {
        "vocab_size_per_layer_input": 300,
        "hidden_size_per_layer_input": 16,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma4_text": {"vocab_size_per_layer_input": 300, "hidden_size_per_layer_input": 16},
    "git": {"vision_config": {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "image_size": 32}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"]},
    "roc_bert": {"pronunciation_vocab_size": 300, "shape_vocab_size": 300},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layer_types": ["mamba", "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 4, "layer_types": ["linear_attention", "hybrid"] * 2, "hybrid_layer_ids": [1, 3]},
    "zaya": {"num_experts_per_tok": 1},
}

# Architectures that count positions from the padding token, which the tokenizer must then have.
_PADDED = {"camembert", "data2vec-text", "prophetnet", "roberta", "roberta-prelayernorm", "xlm-roberta"}
PADDED = frozenset({*_PADDED, "xlm-roberta-xl", "xmod", "xlm"})


class NotTriedError(Exception):
    """An architecture has no tiny config; the message says why."""


def tiny_config(kind: str) -> Any:
    """A config of about 100,000 parameters.

    Raises:
        NotTriedError: the text part is another architecture, or the config class cannot make a tiny config.
    """
    try:
        default = CONFIG_MAPPING[kind]()
    except Exception as error:
        raise NotTriedError(f"its config class has no defaults that hold ({type(error).__name__})") from error
    text = default.get_text_config(decoder=True)
    if type(text) is not type(default):
        own = type(text).model_type
        raise NotTriedError(f"its text part is `{own}`" if own in KINDS else "it is a model of text and other inputs")
    known = {*default.to_dict(), *(["is_decoder"] if hasattr(default, "is_decoder") else [])}
    changes = {key: value for key, value in _SMALL.items() if key in known}
    changes |= _OTHERS.get(kind, {})
    try:
        return type(default)(**{key: value for key, value in changes.items() if value is not None})
    except Exception as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise NotTriedError(f"its config cannot be made small: {reason}") from error
