"""Trials before step 0: a network that fails is refused with a reason, and trials change nothing."""

from types import SimpleNamespace

import pytest
import torch
from transformers import (
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedConfig,
    RobertaConfig,
    XLNetConfig,
)

from scorers.errors import UserError
from training.config import ModelConfig
from training.model import trial
from training.model.language_model import build_model
from training.model.trial import Tokens, check_causal, check_reloads, check_samples, check_trains, try_network
from training.model.vocabulary import Vocabulary
from training.objectives import build

EOS = 0
TOKENS = Tokens(300, EOS, EOS, frozenset({EOS}), 32)
AWR = build("awr", alpha=0.5, beta=1.0)
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = BertConfig(**SIZES, max_position_embeddings=64)
DECODER = BertConfig(**SIZES, max_position_embeddings=64, is_decoder=True)
ROBERTA = RobertaConfig(**SIZES, max_position_embeddings=64, is_decoder=True)
LLAMA = LlamaConfig(**SIZES, max_position_embeddings=64)
SEEING = LlamaConfig(**SIZES, max_position_embeddings=64, is_causal=False)
MIXTRAL = MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=1, sliding_window=4)
GPT2 = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64)
OPT = OPTConfig(hidden_size=32, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2)
XLNET = XLNetConfig(d_model=32, n_layer=2, n_head=2, d_inner=32)


@pytest.fixture
def make(tmp_path):
    def made(config: PreTrainedConfig | None = None, *, pad_id=None, **options):
        if config is not None:
            config.save_pretrained(tmp_path)
        torch.manual_seed(0)
        name = "nano" if config is None else str(tmp_path)
        return build_model(ModelConfig(name=name), Vocabulary(300, EOS, pad_id=pad_id), **options)

    return made


@pytest.mark.parametrize("config", [BERT, SEEING, XLNET], ids=["bert", "llama", "xlnet"])
def test_a_network_that_sees_the_future_is_refused(make, config):
    with pytest.raises(UserError, match=rf"The network {config.model_type} \(\w+\) sees the future"):
        check_causal(make(config).causal, TOKENS)


@pytest.mark.parametrize(
    "config", [DECODER, LLAMA, MIXTRAL, OPT, None], ids=["bert", "llama", "mixtral", "opt", "nano"]
)
@pytest.mark.parametrize("context_length", [2, 32])
def test_a_causal_network_is_accepted(make, config, context_length):
    check_causal(make(config).causal, Tokens(300, EOS, EOS, frozenset({EOS}), context_length))


@torch.no_grad()
def test_attention_hidden_by_a_zero_matrix_is_detected(make):
    causal = make(SEEING).causal
    for layer in causal.model.layers:
        layer.self_attn.o_proj.weight.zero_()
    with pytest.raises(UserError, match="sees the future"):
        check_causal(causal, TOKENS)
    assert not any(layer.self_attn.o_proj.weight.any() for layer in causal.model.layers)


@torch.no_grad()
def test_nan_outputs_are_refused(make):
    causal = make().causal
    causal.transformer.ln_f.weight[3] = torch.nan
    with pytest.raises(UserError, match="has outputs that are NaN or infinite"):
        check_causal(causal, TOKENS)


@pytest.mark.parametrize(("size", "rows", "length"), [(300, 1, 24), (300, 1, 32), (12, 1, 24), (50257, 1, 512)])
def test_the_others_differ_at_every_position_and_none_is_special(size, rows, length):
    special = frozenset({0, size - 1})
    tokens = Tokens(size, 0, 0, special, length)
    ids, others = tokens.rows(rows, length), tokens.rows(rows, length, others=True)
    assert bool((ids != others).all())
    assert not special & {*ids.flatten().tolist(), *others.flatten().tolist()}
    assert max(ids.max(), others.max()) < size


@pytest.mark.parametrize("config", [None, GPT2, OPT, MIXTRAL], ids=["nano", "dropout", "projected", "experts"])
def test_the_trials_do_not_change_the_network(make, config):
    model = make(config, value_head=True, rows_multiple=64)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    state, modes = torch.get_rng_state(), [each.training for each in model.modules()]
    try_network(model, AWR, TOKENS)
    after = model.state_dict()
    assert all(torch.equal(each, after[name]) for name, each in before.items())
    assert torch.equal(torch.get_rng_state(), state)
    assert [each.training for each in model.modules()] == modes
    assert all(each.grad is None for each in model.parameters())


def test_the_value_head_reads_the_input_of_a_projected_output_embedding(make):
    model = make(OPT, value_head=True)
    assert model.value_head.weight.shape == (1, 16)
    check_trains(model, AWR, TOKENS)


def test_samples_end_at_different_lengths(make, monkeypatch):
    drawn = []
    plain = trial.sample
    monkeypatch.setattr(trial, "sample", lambda *given, **options: drawn.append(plain(*given, **options)))
    check_samples(make().causal, TOKENS)
    lengths = [len(ids) for ids in drawn[0].ids]
    assert min(lengths) == 0 < max(lengths) < 4


def test_a_network_that_cannot_be_sampled_is_refused(make, monkeypatch):
    causal = make().causal

    def forward(**inputs):
        raise NotImplementedError("rows of different lengths.\n and more")

    monkeypatch.setattr(causal, "forward", forward)
    with pytest.raises(UserError, match=r"gpt2 .* be sampled from: NotImplementedError: rows of different lengths"):
        check_samples(causal, TOKENS)


def test_a_network_without_a_gradient_is_refused(make, monkeypatch):
    model = make()
    model.has_linear_head = False
    forward = model.causal.forward
    monkeypatch.setattr(
        model.causal,
        "forward",
        lambda **inputs: SimpleNamespace(logits=forward(**inputs).logits.detach().requires_grad_()),
    )
    with pytest.raises(UserError, match=r"cannot be trained for mle: no gradient reaches its input"):
        check_trains(model, build("mle"), TOKENS)


def test_a_network_with_its_own_random_numbers_is_refused(make, monkeypatch):
    model = make(GPT2)
    model.has_linear_head = False
    check_trains(model, build("mle"), TOKENS)  # its dropout uses torch's generator, which a checkpoint saves
    forward, own = model.causal.forward, torch.Generator().manual_seed(0)

    def noisy(**inputs):
        logits = forward(**inputs).logits
        return SimpleNamespace(logits=logits + torch.randn(logits.shape, generator=own))

    monkeypatch.setattr(model.causal, "forward", noisy)
    with pytest.raises(UserError, match="gives a different loss each time"):
        check_trains(model, build("mle"), TOKENS)


def test_a_network_that_reloads_differently_is_refused(make):
    model = make()
    check_reloads(model, TOKENS)
    model.causal.config.activation_function = "relu"
    with pytest.raises(UserError, match="is reloaded from its own folder as a different model"):
        check_reloads(model, TOKENS)


def test_names_and_shapes_of_a_large_network_are_compared(make, monkeypatch):
    monkeypatch.setattr(trial, "_WRITTEN", 0)
    model = make(rows_multiple=64)
    check_reloads(model, TOKENS)
    model.causal.config.n_layer = 3
    with pytest.raises(UserError, match="is reloaded from its own folder as a different model"):
        check_reloads(model, TOKENS)


def test_positions_counted_by_padding_need_a_padding_token(make):
    with pytest.raises(UserError, match="It needs a padding token, which the tokenizer does not have"):
        make(ROBERTA)
    model = make(ROBERTA, pad_id=1, value_head=True)
    assert model.causal.config.pad_token_id == 1
    try_network(model, AWR, TOKENS)
