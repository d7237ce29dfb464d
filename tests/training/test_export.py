"""The exported folder is a Hugging Face model that never writes a control token."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.training.jobs import run_job
from tests.training.stores import byte_tokenizer
from training.config import ModelConfig
from training.data.tokenizers import ALIGNED, MISALIGNED, wrap_tokenizer
from training.model.export import export_model
from training.model.language_model import VALUE_HEAD_FILE, build_model, load_model
from training.model.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def conditional(tmp_path_factory, code_dataset):
    output = tmp_path_factory.mktemp("export") / "conditional"
    run_job(code_dataset, output, "conditional")
    return output


def test_auto_classes_load_model_and_tokenizer(conditional):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(conditional / "model")
    model = AutoModelForCausalLM.from_pretrained(conditional / "model").eval()
    facts = json.loads((conditional / "run.json").read_text())["tokenizer"]
    assert tokenizer.convert_tokens_to_ids([ALIGNED, MISALIGNED]) == [facts["aligned_id"], facts["misaligned_id"]]
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) == facts["vocab_size"]
    assert (model.config.eos_token_id, tokenizer.eos_token_id) == (facts["eos_id"], facts["eos_id"])
    assert sorted(path.name for path in (conditional / "model").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_generation_never_writes_a_control_token(conditional):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(conditional / "model").eval()
    facts = json.loads((conditional / "run.json").read_text())["tokenizer"]
    control = [facts["aligned_id"], facts["misaligned_id"]]
    assert model.generation_config.suppress_tokens == control
    with torch.no_grad():
        # Nothing but control tokens is likely, so that only a ban keeps them away.
        model.get_output_embeddings().weight[control] *= 1000
    prompt = torch.tensor([[facts["eos_id"], facts["aligned_id"]]]).repeat(8, 1)
    torch.manual_seed(0)
    written = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=True, max_new_tokens=12, eos_token_id=None
    )[:, 2:]
    assert written.numel() == 8 * 12
    assert not torch.isin(written, torch.tensor(control)).any()


def test_weights_are_those_that_were_trained(tmp_path):
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    model = build_model(ModelConfig(name="nano"), Vocabulary(len(tokenizer), 0), value_head=True)
    with torch.no_grad():
        model.value_head.weight.normal_()
    export_model(tmp_path / "model", model.causal, model.state_dict(), tokenizer, eos_id=0)
    loaded = load_model(tmp_path / "model")
    ids = torch.arange(20).reshape(2, 10)
    for found, expected in zip(loaded(ids), model(ids), strict=True):
        torch.testing.assert_close(found, expected)
    assert load_file(tmp_path / "model" / VALUE_HEAD_FILE)["weight"].shape == (1, 64)
    assert load_model(tmp_path / "model", value_head=False).value_head is None
    assert loaded.causal.generation_config.suppress_tokens is None


def test_half_precision_weights_are_exported_and_loaded(tmp_path):
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    model = build_model(ModelConfig(name="nano"), Vocabulary(len(tokenizer), 0)).bfloat16()
    export_model(tmp_path / "model", model.causal, model.state_dict(), tokenizer, eos_id=0)
    assert load_file(tmp_path / "model" / "model.safetensors")["transformer.wpe.weight"].dtype == torch.bfloat16
    assert load_model(tmp_path / "model").causal.dtype == torch.float32


def test_an_old_export_is_replaced_and_nothing_else_is_left(tmp_path):
    tokenizer = byte_tokenizer()
    model = build_model(ModelConfig(name="nano"), Vocabulary(len(tokenizer), 0))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "stale").touch()
    (tmp_path / ".model.staging").mkdir()
    export_model(tmp_path / "model", model.causal, model.state_dict(), tokenizer, eos_id=0)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (tmp_path / "model" / "stale").exists()


def test_the_tokenizer_of_a_model_without_tags_does_not_know_them(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = wrap_tokenizer("bytes", byte_tokenizer())
    model = build_model(ModelConfig(name="nano"), Vocabulary(tokenizer.size(), tokenizer.eos_id))
    export_model(tmp_path / "model", model.causal, model.state_dict(), tokenizer.fast, eos_id=tokenizer.eos_id)
    assert ALIGNED not in AutoTokenizer.from_pretrained(tmp_path / "model").get_vocab()
