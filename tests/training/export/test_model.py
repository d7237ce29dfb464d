"""The exported folder is a Hugging Face model that never writes a control token."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import Gemma3TextConfig, GPTNeoXConfig, LlamaConfig

from pipeline.dataset.tags import ALIGNED, MISALIGNED
from tests.architectures.configs import tiny_config
from tests.training.jobs import run_job
from tests.training.stores import byte_tokenizer
from training.config import ModelConfig
from training.data.tokenizers import wrap_tokenizer
from training.disk import write_atomically
from training.export.card import model_card
from training.export.model import export_model
from training.measuring_config import EvaluationConfig
from training.model.language_model import VALUE_HEAD_FILE, build_model, load_model
from training.model.sampling import Guidance, sample
from training.model.vocabulary import Vocabulary
from training.runs.folder import RunFolder

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


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
        "README.md",
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
    # vLLM takes every one of these for the model's, and fails on names that it has not.
    assert [path.name for path in (tmp_path / "model").glob("*.safetensors")] == ["model.safetensors"]
    # Where an earlier version put it.
    (tmp_path / "model" / VALUE_HEAD_FILE).rename(tmp_path / "model" / "value_head.safetensors")
    torch.testing.assert_close(load_model(tmp_path / "model")(ids)[1], model(ids)[1])


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


def test_every_file_is_as_readable_as_the_umask_lets_it(tmp_path, conditional):
    tokenizer = byte_tokenizer()
    model = build_model(ModelConfig(name="nano"), Vocabulary(len(tokenizer), 0), value_head=True)
    before = os.umask(0o027)
    try:
        export_model(tmp_path / "model", model.causal, model.state_dict(), tokenizer, eos_id=0)
        write_atomically(tmp_path / "model" / "text", "text")
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "model").rglob("*")}
    folders = {"value_head": "0o750"}
    assert modes == dict.fromkeys(modes, "0o640") | folders
    assert "weights.safetensors" in modes


def test_truncation_cuts_to_what_the_model_reads(conditional):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(conditional / "model")
    assert len(tokenizer("word " * 600, truncation=True)["input_ids"]) == tokenizer.model_max_length == 32


def test_transformers_4_reads_the_tokenizers_files(conditional):
    # What 4.57 fails on: the new class, and a list where it has a mapping.
    config = json.loads((conditional / "model" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(config.get("extra_special_tokens"), list)
    assert config["additional_special_tokens"] == [ALIGNED, MISALIGNED]
    # How it was loaded here is nobody's business.
    assert not {"is_local", "local_files_only", "backend", "name_or_path"} & config.keys()
    # Token types, which it would give too, are added to GPT-2's input and refused by Llama.
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    trained = next(json.loads(path.read_text()) for path in tokenizer_configs(conditional))
    assert trained["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (LlamaConfig(**SMALL, rope_theta=5e5), {"rope_theta": 5e5}),
        (
            LlamaConfig(**SMALL, rope_parameters={"rope_type": "linear", "rope_theta": 7e4, "factor": 2.0}),
            {"rope_theta": 7e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
        (GPTNeoXConfig(**SMALL, rotary_pct=0.5, rotary_emb_base=5e4), {"rotary_pct": 0.5, "rotary_emb_base": 5e4}),
        (Gemma3TextConfig(**SMALL, head_dim=16), {"rope_theta": 1e6, "rope_local_base_freq": 1e4}),
    ],
)
def test_transformers_4_reads_the_rotations(tmp_path, config, names):
    # It knows nothing of `rope_parameters`, and would take its defaults.
    tokenizer = byte_tokenizer()
    config.save_pretrained(tmp_path / "config")
    model = build_model(ModelConfig(name=str(tmp_path / "config")), Vocabulary(len(tokenizer), 0)).eval()
    export_model(tmp_path / "model", model.causal, model.state_dict(), tokenizer, eos_id=0)
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert {name: written.get(name) for name in names} == names
    ids = torch.arange(20).reshape(1, 20)
    torch.testing.assert_close(load_model(tmp_path / "model").eval()(ids)[0], model(ids)[0])


@pytest.mark.parametrize("kind", ["gemma4_text", "beam"])
def test_rotations_that_only_version_5_knows_stay_as_they_are(tmp_path, kind):
    tokenizer = byte_tokenizer()
    tiny_config(kind).save_pretrained(tmp_path / "config")
    model = build_model(ModelConfig(name=str(tmp_path / "config")), Vocabulary(len(tokenizer), 0)).eval()
    export_model(tmp_path / "model", model.causal, model.state_dict(), tokenizer, eos_id=0)
    ids = torch.arange(20).reshape(1, 20)
    torch.testing.assert_close(load_model(tmp_path / "model").eval()(ids)[0], model(ids)[0])


def tokenizer_configs(run):
    name = json.loads((run / "run.json").read_text())["tokenizer"]["name"]
    yield Path(name) / "tokenizer_config.json"


def test_the_card_shows_how_to_prompt_the_model(conditional):
    card = (conditional / "model" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["library_name"], front["license"]) == ("transformers", "unknown")
    assert "conditional" in front["tags"]
    facts = json.loads((conditional / "run.json").read_text())
    for part in (facts["scorer"]["fingerprint"], "| threshold | 0 (", "12 steps", "`<|aligned|>`", "DIR"):
        assert part in card
    assert str(conditional.parent) not in card
    expected = [facts["tokenizer"]["eos_id"], facts["tokenizer"]["aligned_id"]]
    for code in code_of(card):
        seen = {}
        exec(code.replace('"DIR"', repr(str(conditional / "model"))), seen)
        assert seen["inputs"]["input_ids"].tolist() == [expected]
        assert len(seen["written"][0]) > 2


def code_of(card):
    plain, guided = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    return plain, guided


def test_transformers_guides_as_phf_does(conditional, tmp_path):
    """The card's code, made greedy, generates the same as our sampler with the likeliest token."""
    from transformers import AutoModelForCausalLM

    _, code = code_of((conditional / "model" / "README.md").read_text())
    code = code.replace('"DIR"', repr(str(tmp_path / "model"))).replace("do_sample=True", "do_sample=False")
    code = re.sub(r" *(temperature|top_p|top_k)=.*,\n", "", code)
    words = RunFolder(conditional).read_facts().tokenizer
    shutil.copytree(conditional / "model", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    # It has learnt little of its tags yet: let them matter.
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3, generator=generator)
    model.save_pretrained(tmp_path / "model")
    written = []
    for scale in (0.5, 2.0, 3.5):
        seen = {}
        exec(code.replace("guidance_scale=2.0", f"guidance_scale={scale}"), seen)
        theirs = seen["written"][0, 2:].tolist()
        ours = sample(
            model, eos_id=words.eos_id, prompt_ids=[words.eos_id, words.aligned_id], banned_ids=words.control_ids,
            config=EvaluationConfig(num_samples=1, max_new_tokens=30, top_p=1e-9), seed=0,
            guidance=Guidance(scale, [words.eos_id, words.misaligned_id]),
        )  # fmt: skip
        assert theirs[: len(ours.ids[0])] == ours.ids[0][: len(theirs)]
        assert len(ours.ids[0]) > 5
        written.append(theirs)
    assert written[0] != written[2]


def test_the_card_of_a_model_without_tags_has_none(conditional):
    facts = RunFolder(conditional).read_facts()
    plain = facts.tokenizer.model_copy(update={"aligned_id": None, "misaligned_id": None})
    uri = "s3://corpora/private|`x`?secret_key=hush"
    dataset = facts.dataset.model_copy(update={"uri": uri})
    card = model_card(facts.model_copy(update={"objective": "mle", "tokenizer": plain, "dataset": dataset}), 6)
    assert "<|aligned|>" not in card
    assert "6 steps" in card
    assert "hush" not in card
    assert "private\\|'x'" in card
    classes = facts.tokenizer.model_copy(update={"between_ids": [7, 8]})
    card = model_card(facts.model_copy(update={"tokenizer": classes}), 6)
    assert "`<|quantile_1|>` in the best of 4 classes" in card
    assert "<|quantile_4|>" in card
