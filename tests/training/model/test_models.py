"""The network: named sizes, vocabulary, control tokens, the value head, and FLOPs."""

import pytest
import torch

from scorers.errors import UserError
from tests.training.stores import byte_tokenizer
from training.config import ModelConfig
from training.data.tokenizers import wrap_tokenizer
from training.model.build_network import check_context, max_positions
from training.model.counting import count_parameters, flops_per_token
from training.model.language_model import build_model, load_model
from training.model.sizes import SIZES
from training.model.vocabulary import Vocabulary

VOCABULARY = Vocabulary(size=302, eos_id=0, control_ids=(300, 301))


def make(name="nano", vocabulary=VOCABULARY, *, value_head=False, seed=0, **config):
    torch.manual_seed(seed)
    return build_model(ModelConfig(name=name, **config), vocabulary, value_head=value_head)


def small_llama(tie=True):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=500,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tie,
    )


def test_gpt2_has_the_published_number_of_parameters():
    model = build_model(ModelConfig(name="gpt2"), Vocabulary(50257, 50256), skeleton=True)
    assert count_parameters(model)[0] == 124_439_808


def test_flops_of_gpt2_match_the_formula():
    model = build_model(ModelConfig(name="gpt2"), Vocabulary(50257, 50256), skeleton=True)
    products = 124_439_808 - 1024 * 768  # the token table counts once: as the output's matrix product
    assert flops_per_token(model, 1024) == 6 * products + 12 * 12 * 768 * 1024


def test_untied_models_count_flops_of_the_output_embedding_only(tmp_path):
    small_llama(tie=False).save_pretrained(tmp_path)
    model = make(str(tmp_path))
    total, tables = count_parameters(model)
    assert tables == 302 * 32
    assert flops_per_token(model, 16) == 6 * (total - tables) + 12 * 2 * 32 * 16


def test_the_tiny_sizes_are_small_and_have_no_dropout():
    assert count_parameters(make("tiny", Vocabulary(8192, 0)))[0] < 2_000_000
    model = make("nano").train()
    ids = torch.arange(40).reshape(2, 20)
    assert torch.equal(model(ids)[0], model(ids)[0])


def test_the_same_seed_builds_the_same_model():
    first, second, other = make(seed=1), make(seed=1), make(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(next(iter(first.parameters())), next(iter(other.parameters())))


def test_special_ids_come_from_the_tokenizer():
    config = make(vocabulary=Vocabulary(302, eos_id=7)).causal.config
    assert (config.vocab_size, config.eos_token_id, config.bos_token_id) == (302, 7, 7)
    config = make(vocabulary=Vocabulary(302, eos_id=7, bos_id=8)).causal.config
    assert (config.eos_token_id, config.bos_token_id) == (7, 8)


@pytest.mark.parametrize("tie", [True, False])
def test_control_rows_start_near_the_mean_of_the_embedding_and_differ(tmp_path, tie):
    small_llama(tie=tie).save_pretrained(tmp_path)
    causal = make(str(tmp_path)).causal
    for weight in (causal.get_input_embeddings().weight, causal.get_output_embeddings().weight):
        mean, spread = weight[:300].mean(0), weight[:300].std()
        assert (weight[300:] - mean).abs().max() < spread
        assert not torch.equal(weight[300], weight[301])
        assert (weight[:300] - mean).abs().max() > spread


def test_values_start_at_minus_one_half_and_have_a_gradient():
    model = make(value_head=True)
    logits, values = model(torch.arange(20).reshape(2, 10))
    assert logits.shape == (2, 10, 302)
    assert values.shape == (2, 10)
    assert torch.all(values == -0.5)
    values.sum().backward()
    assert model.value_head.weight.grad.abs().sum() > 0
    assert [name for name, _ in model.value_head.named_parameters()] == ["weight"]


def test_the_value_head_reads_the_input_of_the_output_embedding(tmp_path):
    small_llama(tie=False).save_pretrained(tmp_path)
    model = make(str(tmp_path), value_head=True)
    with torch.no_grad():
        model.value_head.weight.normal_()
    ids = torch.arange(12).reshape(1, 12)
    hidden = model.causal.model(input_ids=ids).last_hidden_state
    expected = -torch.sigmoid(hidden @ model.value_head.weight.T).squeeze(-1)
    torch.testing.assert_close(model(ids)[1], expected)


def test_a_checkpoint_grows_by_the_control_tokens(tmp_path):
    source = make("nano", Vocabulary(300, 0), seed=3)
    source.causal.save_pretrained(tmp_path)
    model = make(str(tmp_path), pretrained=True)
    assert model.causal.get_input_embeddings().num_embeddings == 302
    table = source.causal.get_input_embeddings().weight
    assert torch.equal(model.causal.get_input_embeddings().weight[:300], table)
    assert model.causal.get_output_embeddings().weight is model.causal.get_input_embeddings().weight
    assert (model.causal.get_input_embeddings().weight[300] - table.mean(0)).abs().max() < table.std()


def test_a_checkpoint_with_spare_rows_keeps_its_size(tmp_path):
    make("nano", Vocabulary(320, 0)).causal.save_pretrained(tmp_path)
    assert make(str(tmp_path), pretrained=True).causal.get_input_embeddings().num_embeddings == 320


def test_control_tokens_in_spare_rows_start_at_the_mean(tmp_path):
    make("nano", Vocabulary(320, 0)).causal.save_pretrained(tmp_path)
    padded = make("nano", Vocabulary(320, 0)).causal.get_input_embeddings().weight
    byte_tokenizer().save_pretrained(tmp_path)
    size = len(byte_tokenizer())
    vocabulary = Vocabulary(size + 2, 0, (size, size + 1), size)
    table = make(str(tmp_path), vocabulary, pretrained=True).causal.get_input_embeddings().weight
    tags, spread = slice(size, size + 2), padded.std()
    assert (padded[tags] - padded.mean(0)).std() > spread / 2
    assert (table[tags] - padded.mean(0)).std() < spread / 2
    assert torch.equal(table[:size], padded[:size])
    assert torch.equal(table[size + 2 :], padded[size + 2 :])


@pytest.mark.parametrize("knows_tags", [True, False])
def test_learnt_control_tokens_of_a_checkpoint_are_kept(tmp_path, knows_tags):
    tokenizer = wrap_tokenizer("bytes", byte_tokenizer())
    ids = tokenizer.control_ids(2)
    source = make("nano", Vocabulary(tokenizer.size(ids), 0, ids)).causal
    source.save_pretrained(tmp_path)
    tokenizer.with_control_tokens().save_pretrained(tmp_path)
    base = tokenizer.size(ids) if knows_tags else tokenizer.base_size
    vocabulary = Vocabulary(tokenizer.size(ids), 0, ids, base)
    model = make(str(tmp_path), vocabulary, pretrained=True, seed=1)
    assert torch.equal(model.causal.get_input_embeddings().weight, source.get_input_embeddings().weight)


def test_fields_can_be_overridden():
    model = make("nano", overrides={"n_layer": 3, "resid_pdrop": 0.1})
    assert model.causal.config.num_hidden_layers == 3
    assert model.causal.config.resid_pdrop == 0.1


def test_max_positions_come_from_the_config(tmp_path):
    small_llama().save_pretrained(tmp_path)
    assert max_positions(ModelConfig(name="tiny")) == 256
    assert max_positions(ModelConfig(name="tiny", overrides={"n_positions": 512})) == 512
    assert max_positions(ModelConfig(name="tiny", overrides={"max_position_embeddings": 96})) == 96
    assert max_positions(ModelConfig(name=str(tmp_path))) == 64


def test_a_config_without_positions_sets_no_limit(tmp_path):
    from transformers import XLNetConfig

    XLNetConfig().save_pretrained(tmp_path)
    assert max_positions(ModelConfig(name=str(tmp_path))) is None


def test_a_longer_context_than_positions_is_refused():
    with pytest.raises(UserError, match=r"context_length is 1024, but model 'nano' has positions for 128"):
        check_context(ModelConfig(name="nano"), 1024)
    check_context(ModelConfig(name="nano", overrides={"n_positions": 1024}), 1024)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"overrides": {"n_heads": 3}}, r"model\.overrides\.n_heads: GPT2Config has no such field"),
        ({"overrides": {"n_head": 3}}, r"Cannot build model 'nano'.*Check model\.overrides"),
        *(
            ({"overrides": {key: value}}, rf"model\.overrides\.{key}.*at least 1")
            for key, value in {"n_head": 0, "n_embd": 0, "n_layer": -1, "n_inner": 0, "n_positions": "abc"}.items()
        ),
        ({"overrides": {"layer_norm_epsilon": "abc"}}, r"model\.overrides\.layer_norm_epsilon: .*expected float"),
        ({"overrides": {"activation_function": "foo"}}, r"Cannot build model 'nano': there is no 'foo'.*overrides"),
        ({"overrides": {"vocab_size": 7}}, r"model\.overrides\.vocab_size: the tokenizer decides"),
        ({"pretrained": True}, r"'nano' is a size without published weights"),
        ({"name": "/no/such/model"}, r"Cannot load model '/no/such/model'.*one of nano, tiny"),
    ],
)
def test_a_model_that_cannot_be_built_is_an_error_with_a_remedy(config, message):
    with pytest.raises(UserError, match=message):
        make(**{"name": "nano", **config})


def test_invalid_positions_are_refused_when_first_read():
    with pytest.raises(UserError, match=r"model\.overrides\.n_positions='abc' must be a whole number"):
        max_positions(ModelConfig(name="nano", overrides={"n_positions": "abc"}))


def test_truncated_weights_are_named(tmp_path):
    make("nano").causal.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"weights in .* are damaged or truncated"):
        load_model(tmp_path)
    with pytest.raises(UserError, match=r"weights of model .* damaged or truncated"):
        make(str(tmp_path), pretrained=True)


def test_sizes_grow():
    assert list(SIZES) == ["nano", "tiny", "mini", "small", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]
    assert all(size.width % size.heads == 0 for size in SIZES.values())
