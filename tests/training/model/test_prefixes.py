"""Sampling works the same with a cache, with one that cannot drop rows, and without one."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.training.model.test_sampling import config
from training.model.prefixes import Prefixes
from training.model.sampling import draw, evaluation_mode, sample

SMALL = {"vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 64}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
OF = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "openai-gpt": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},  # no cache
    "mistral": {"sliding_window": 4},
    "mamba": {"state_size": 4, "num_hidden_layers": 2},  # a cache with another name
    "recurrent_gemma": {"lru_width": 16, "attention_window_size": 8, "num_hidden_layers": 3},  # state in its modules
    "lfm2": {"layer_types": ["conv", "full_attention"]},  # layers that cannot drop rows
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 1, "linear_num_value_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1,
        "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8,
    },
    "jamba": {"num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
    "falcon_h1": {  # layers that drop rows of only half of their state
        "mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1,
    },
}  # fmt: skip
CACHED = {"gpt2", "mistral", "lfm2", "qwen3_next", "jamba", "falcon_h1"}
DROPPED = {"gpt2", "mistral"}


@pytest.fixture(scope="module", params=list(OF))
def network(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """An architecture's name, and a small random model."""
    name = request.param
    with torch.random.fork_rng():
        torch.manual_seed(0)
        given = {**SMALL, **LAYERS, **OF[name], "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}
        known = AutoConfig.for_model(name)
        there = {**known.to_dict(), **known.attribute_map, "layer_types": ()}
        shape = AutoConfig.for_model(name, **{key: value for key, value in given.items() if key in there})
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return name, model


def test_samples_equal_those_without_a_cache(network: tuple[str, Any]) -> None:
    """Each token equals that of a pass over the whole prefix, also after other rows have ended."""
    _, model = network
    settings = config(num_samples=6, batch_size=6, max_new_tokens=14, top_p=0.95, temperature=2.5)
    samples = sample(model, eos_id=0, prompt_ids=[0, 5], banned_ids=[7], config=settings, seed=3)
    assert len({len(ids) for ids in samples.ids}) > 2, "rows that end at different steps"
    uniform = torch.rand(6, 14, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with evaluation_mode(model):
        for row, ids in enumerate(samples.ids):
            whole = [*ids, 0] if samples.ended[row] else ids
            for step, token in enumerate(whole):
                logits = model(torch.tensor([[0, 5, *ids[:step]]]), use_cache=False).logits[:, -1]
                logits[:, 7] = -torch.inf
                assert draw(logits / 2.5, 0.95, uniform[row, step : step + 1]).item() == token


def test_a_usable_cache_is_used(network: tuple[str, Any]) -> None:
    name, model = network
    lengths: list[tuple[int, int]] = []
    model.register_forward_pre_hook(
        lambda _, __, given: lengths.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    try:
        with torch.no_grad():
            prefixes = Prefixes(model, torch.tensor([[0, 5], [0, 6], [0, 7]]))
            for _ in range(2):
                prefixes.append(prefixes.logits().argmax(-1))
            prefixes.keep(torch.tensor([0, 2]))
            for _ in range(2):
                prefixes.append(prefixes.logits().argmax(-1))
            prefixes.keep(torch.tensor([1]))
            assert prefixes.logits().shape == (1, model.config.vocab_size)
    finally:
        model._forward_pre_hooks.clear()
        model._forward_pre_hooks_with_kwargs.clear()
    # If rows cannot be dropped, the prefix is read again once, and the rows stay.
    if name in DROPPED:
        assert lengths == [(3, 2), (3, 1), (2, 1), (2, 1), (1, 1)]
    elif name in CACHED:
        assert lengths == [(3, 2), (3, 1), (2, 4), (2, 1), (2, 1)]
    else:
        assert lengths == [(3, 2), (3, 3), (2, 4), (2, 5), (1, 6)]


def test_errors_of_the_network_are_not_hidden() -> None:
    def broken(**_: Any) -> Any:
        raise RuntimeError("broken")

    class Broken(torch.nn.Module):
        def forward(self, input_ids: Any, past_key_values: Any = None, use_cache: bool = True) -> Any:
            return broken(input_ids=input_ids)

    with pytest.raises(RuntimeError, match="broken"):
        Prefixes(Broken(), torch.zeros((1, 2), dtype=torch.long)).logits()
