"""What a foreign model or tokenizer may contain: code, kernels, adapters, quantisers, invalid weights."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers.utils import logging
from typer.testing import CliRunner

from phf import app
from scorers import hugging_face
from scorers.classifiers.pretrained import locate
from scorers.errors import UserError
from tests.training.engine.test_plain_loading import Hostile
from tests.training.jobs import command
from tests.training.stores import byte_tokenizer
from training.config import ModelConfig
from training.data.tokenizers import load_tokenizer
from training.model.build_network import load_pretrained, max_positions
from training.model.language_model import build_model, load_model
from training.model.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign") / "plain"
    tokenizer = byte_tokenizer()
    build_model(ModelConfig(name="nano"), Vocabulary(len(tokenizer), 0)).causal.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "model")


def test_loading_draws_no_progress_bar(folder, capfd):
    logging.enable_progress_bar()
    load_model(folder)
    assert capfd.readouterr().err == ""


def edit(file: Path, **changes):
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | changes))


def with_code(folder):
    edit(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    edit(folder / "tokenizer_config.json", tokenizer_class="T", auto_map={"AutoTokenizer": ["own.T", "own.T"]})
    (folder / "own.py").write_text(
        f"open({str(folder.parent / 'witness')!r}, 'w')\n"
        "from transformers import GPT2Config as C, GPT2LMHeadModel as M, GPT2TokenizerFast as T\n"
    )


def loads(folder):
    """Every way to load a folder's model."""
    config = ModelConfig(name=str(folder), pretrained=True)
    return [
        lambda: max_positions(config),
        lambda: load_pretrained(config),
        lambda: load_pretrained(config, skeleton=True),
        lambda: load_model(folder),
    ]


@pytest.mark.parametrize("answer", ["", "y\n" * 20], ids=["silent", "yes"])
@pytest.mark.parametrize("flag", ["--init-from", "--model", "--tokenizer"])
def test_code_in_a_folder_is_neither_run_nor_offered(tmp_path, code_dataset, folder, flag, answer):
    with_code(folder)
    arguments = command(code_dataset, tmp_path / "run", "mle")[2:]
    if flag != "--tokenizer":
        named = arguments.index("--model")
        arguments = [*arguments[:named], *arguments[named + 2 :]]
    done = CliRunner().invoke(app, [*arguments, flag, str(folder)], input=answer)
    assert done.exit_code == 2, done.output
    printed = " ".join(done.output.split())
    assert "phf runs no code of a model or tokenizer" in printed
    assert "Do you wish" not in printed
    assert not (tmp_path / "witness").exists()
    assert not (tmp_path / "run").exists()


def test_loading_a_folder_never_runs_its_code(tmp_path, folder):
    with_code(folder)
    for load in [*loads(folder), lambda: load_tokenizer(str(folder))]:
        with pytest.raises(UserError, match="runs no code of a model or tokenizer"):
            load()
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_folder_does_not_choose_how_attention_is_computed(folder, key):
    edit(folder / "config.json", **{key: "eager"})
    config = hugging_face.load_config(str(folder))
    assert (config._attn_implementation, config._experts_implementation) == (None, None)
    assert load_model(folder).causal.config._attn_implementation == "sdpa"
    assert load_pretrained(ModelConfig(name=str(folder), pretrained=True)).config._attn_implementation == "sdpa"
    edit(folder / "config.json", **{key: "owner/kernel"})
    for load in loads(folder):
        with pytest.raises(UserError, match="asks for compiled code of another repository"):
            load()


def test_hub_kernels_are_disabled():
    from transformers.integrations import hub_kernels

    assert not hub_kernels._kernels_enabled


def test_a_quantised_model_is_refused(folder):
    edit(folder / "config.json", quantization_config={"quant_method": "torchao"})
    for load in loads(folder):
        with pytest.raises(UserError, match="is quantised"):
            load()


def test_an_adapter_is_refused(folder):
    edit(folder / "adapter_config.json", base_model_name_or_path="elsewhere", megatron_core="own")
    for load in (lambda: load_pretrained(ModelConfig(name=str(folder), pretrained=True)), lambda: load_model(folder)):
        with pytest.raises(UserError, match="has an adapter"):
            load()


@pytest.mark.parametrize("weights", ["../elsewhere.safetensors", "/elsewhere.safetensors"])
def test_weights_outside_the_folder_are_not_read(folder, weights):
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    names = load_file(folder.parent / "elsewhere.safetensors")
    edit(folder / "model.safetensors.index.json", metadata={}, weight_map=dict.fromkeys(names, weights))
    with pytest.raises(UserError, match="names weights outside its folder"):
        load_model(folder)


@pytest.mark.parametrize("weights", ["parts/model.safetensors.index.json", "other.safetensors", "adapter_model.bin"])
def test_a_folder_does_not_choose_the_file_of_its_weights(folder, weights):
    (folder / "parts").mkdir()
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    edit(
        folder / "parts" / "model.safetensors.index.json",
        metadata={},
        weight_map=dict.fromkeys(names, "../elsewhere.safetensors"),
    )
    edit(folder / "config.json", transformers_weights=weights)
    for load in (lambda: load_pretrained(ModelConfig(name=str(folder), pretrained=True)), lambda: load_model(folder)):
        with pytest.raises(UserError, match="names the file of its weights itself"):
            load()


def test_code_of_a_tokenizers_part_is_neither_run_nor_offered(tmp_path, monkeypatch):
    # transformers loads the two tokenizers with its own defaults; it knows no tokenizer for the first one's model.
    parts = ("question_encoder", "generator")
    folder = tmp_path / "tokenizer"
    for part in parts:
        (folder / f"{part}_tokenizer").mkdir(parents=True)
        edit(
            folder / f"{part}_tokenizer" / "tokenizer_config.json",
            tokenizer_class="T",
            auto_map={"AutoTokenizer": ["own.T", "own.T"]},
        )
    edit(folder / "config.json", model_type="rag", **{part: {"model_type": "vit"} for part in parts})
    edit(folder / "tokenizer_config.json", tokenizer_class="RagTokenizer")
    for place in (folder, folder / "question_encoder_tokenizer"):
        (place / "own.py").write_text(f"open({str(tmp_path / 'witness')!r}, 'w')\nclass T: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError, match="runs no code of a model or tokenizer"):
        load_tokenizer(str(folder))
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize("what", ["objects", "noise", "nothing", "cut", "zip", "no weights"])
def test_invalid_pickled_weights_are_a_user_error(tmp_path, code_dataset, folder, what):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save(weights, file)
    assert load_model(folder)
    if what == "objects":
        torch.save({**weights, "more": Hostile(tmp_path / "witness")}, file)
    elif what == "no weights":
        torch.save([1, "two"], file)
    elif what == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a", "b")
    else:
        file.write_bytes({"noise": b"PAR1 noise" * 99, "nothing": b"", "cut": file.read_bytes()[:-999]}[what])
    arguments = command(code_dataset, tmp_path / "run", "mle")[2:]
    named = arguments.index("--model")
    done = CliRunner().invoke(app, [*arguments[:named], *arguments[named + 2 :], "--init-from", str(folder)])
    printed = " ".join(done.output.split())
    assert done.exit_code == 2, printed
    assert not (tmp_path / "witness").exists()
    if what != "no weights":
        assert "pytorch_model.bin is damaged, or a pickle that holds more than weights" in printed
        with pytest.raises(UserError, match="Save the model as safetensors"):
            load_model(folder)


def test_messages_of_transformers_are_escaped(folder, caplog):
    from io import StringIO
    from logging import StreamHandler, getLogger

    output = StringIO()
    handler = StreamHandler(output)
    logger = getLogger("transformers")
    logger.addHandler(handler)
    try:
        edit(folder / "config.json", model_type="\x1b[31mown")
        load_tokenizer(str(folder))
    finally:
        logger.removeHandler(handler)
    assert "\\x1b[31mown" in output.getvalue()
    assert "\x1b" not in output.getvalue()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["generation_config.json", "model.safetensors", "additional_chat_templates/x.jinja"])
def test_a_pipe_or_a_device_in_a_folder_is_refused_and_not_read(tmp_path, folder, name):
    place = folder / name
    place.unlink(missing_ok=True)
    place.parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / "pipe")
    for target in ("/dev/zero", tmp_path / "pipe"):  # reading the former or opening the latter would hang
        place.unlink(missing_ok=True)
        place.symlink_to(target)
        for load in (*loads(folder), lambda: load_tokenizer(str(folder)), lambda: locate(str(folder), None)):
            with pytest.raises(UserError, match=rf"{place.name} is neither a file nor a folder"):
                load()
    place.unlink()
    place.symlink_to("nowhere")
    assert max_positions(ModelConfig(name=str(folder), pretrained=True)) > 0
