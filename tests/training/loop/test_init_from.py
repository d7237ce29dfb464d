"""Finetuning with feedback: a run starts from the weights of another, including its control tokens."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from phf import app
from pipeline.dataset import open_dataset
from scorers.errors import UserError
from tests.training.jobs import command, job_config, metrics, run_job
from training.commands.train_start import check_held_out, check_tokenizer
from training.config import ModelConfig
from training.data.tokenizers import train_tokenizer
from training.model.language_model import build_model, checkpoint_activations, load_model
from training.model.vocabulary import Vocabulary
from training.objectives import build
from training.runs.folder import RunFolder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, code_dataset):
    """Folders of finished runs, by objective."""
    folder = tmp_path_factory.mktemp("pretrained")
    for objective in ("mle", "conditional"):
        run_job(code_dataset, folder / objective, objective, training__num_tokens=60 * 4 * 32)
    return folder


def train(dataset, output, objective, *options, **changes):
    arguments = command(dataset, output, objective, **changes)[2:]
    named = arguments.index("--model")
    return CliRunner().invoke(app, [*arguments[:named], *arguments[named + 2 :], *options])


@pytest.mark.parametrize(("first", "then", "size"), [("mle", "conditional", 402), ("conditional", "awr", 402)])
def test_it_starts_from_what_the_other_run_has_learnt(tmp_path, code_dataset, pretrained, first, then, size):
    result = train(code_dataset, tmp_path / "run", then, "--init-from", str(pretrained / first))
    assert result.exit_code == 0, result.output
    learnt = metrics(pretrained / first)[-1]["ce"]
    assert metrics(tmp_path / "run")[0]["ce"] < learnt + 0.5 < math.log(400) - 0.3
    facts = RunFolder(tmp_path / "run").read_facts()
    assert facts.tokenizer.vocab_size == size
    model = load_model(tmp_path / "run" / "model")
    assert model.causal.get_input_embeddings().num_embeddings == size
    assert (model.value_head is not None) == (then == "awr")
    assert model.causal.generation_config.suppress_tokens == [400, 401]


def test_control_tokens_that_were_trained_stay_and_new_ones_are_neutral(pretrained):
    learnt = load_model(pretrained / "conditional" / "model").causal.get_input_embeddings().weight
    start = ModelConfig(name=str(pretrained / "conditional" / "model"), pretrained=True)
    rows = build_model(start, Vocabulary(402, 0, (400, 401))).causal.get_input_embeddings().weight
    assert torch.equal(rows, learnt)
    start = ModelConfig(name=str(pretrained / "mle" / "model"), pretrained=True)
    rows = build_model(start, Vocabulary(402, 0, (400, 401))).causal.get_input_embeddings().weight.detach()
    assert (rows[400:] - rows[:400].mean(0)).norm() < 0.2 * rows[:400].norm(dim=1).mean()


def test_what_it_cannot_start_from_is_refused(tmp_path, code_dataset, pretrained):
    (tmp_path / "empty").mkdir()
    other = str(tmp_path / "other")
    train_tokenizer(open_dataset(str(code_dataset)), 300, Path(other))
    for options, message in [
        (["--init-from", str(tmp_path / "empty")], "is neither a run of phf train nor a Hugging Face folder"),
        (["--init-from", str(pretrained / "mle"), "--model", "nano"], "leave --model out"),
        (["--init-from", str(pretrained / "mle"), "--tokenizer", other], "is not that of --init-from"),
        (["--init-from", str(pretrained / "mle"), "--set", "data.tokenizer=null"], "do not set data.tokenizer"),
    ]:
        result = train(code_dataset, tmp_path / "run", "mle", *options)
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.output.split())
    (pretrained / "mle" / "model").rename(tmp_path / "model")
    try:
        result = train(code_dataset, tmp_path / "run", "mle", "--init-from", str(pretrained / "mle"))
    finally:
        (tmp_path / "model").rename(pretrained / "mle" / "model")
    assert result.exit_code == 2
    assert "at step 60 of 60, without a model yet" in " ".join(result.output.split())


@pytest.mark.parametrize("objective", ["mle", "conditional"])
def test_the_tokenizer_of_its_run_may_be_named(tmp_path, pretrained, code_dataset, objective, capsys):
    run = pretrained / objective
    trained = job_config(code_dataset, tmp_path / "run")
    config = trained.model_copy(update={"model": ModelConfig(name=str(run / "model"), pretrained=True)})
    for same in (run / "model", shutil.copytree(run / "model", tmp_path / "copy"), pretrained / "mle" / "model"):
        data = trained.data.model_copy(update={"tokenizer": str(same)})
        check_tokenizer(str(run), config.model_copy(update={"data": data}))
    assert capsys.readouterr().err == ""


def test_another_tokenizer_than_that_of_a_hugging_face_folder_is_told(tmp_path, pretrained, code_dataset, capsys):
    train_tokenizer(open_dataset(str(code_dataset)), 300, tmp_path / "other")
    folder = str(pretrained / "mle" / "model")
    config = job_config(code_dataset, tmp_path / "run", data__tokenizer=tmp_path / "other")
    check_tokenizer(folder, config.model_copy(update={"model": ModelConfig(name=folder, pretrained=True)}))
    assert "Warning: the tokenizer" in capsys.readouterr().err


def test_text_that_the_other_run_has_learnt_and_this_one_is_measured_on_is_told(
    tmp_path, pretrained, code_dataset, capsys
):
    warned = []
    for changes in ({}, {"held_out": 0.1}, {"held_out": 0}, {"held_out": 0.3}, {"held_out_seed": 1}):
        config = job_config(code_dataset, tmp_path / "run", **{f"data__{key}": value for key, value in changes.items()})
        check_held_out(str(pretrained / "mle"), config)
        warned.append("may have been trained on texts" in capsys.readouterr().err)
    assert warned == [False, False, False, True, True]


def test_checkpointing_activations_changes_no_number():
    computed = []
    for again in (False, True):
        torch.manual_seed(0)
        model = build_model(ModelConfig(name="nano"), Vocabulary(64, 0)).train()
        calls = []
        model.causal.transformer.h[0].attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        if again:
            checkpoint_activations(model)
        torch.manual_seed(1)
        loss, _ = model(torch.randint(0, 64, (2, 16)), objective=build("mle"), scores=torch.zeros(2, 16))
        loss.backward()
        assert len(calls) == 1 + again
        computed.append([loss, *(each.grad for each in model.parameters())])
    torch.testing.assert_close(computed[0], computed[1], rtol=0, atol=0)


def test_an_architecture_that_cannot_compute_its_layers_again_says_so(monkeypatch):
    model = build_model(ModelConfig(name="nano"), Vocabulary(64, 0))
    monkeypatch.setattr(type(model.causal), "supports_gradient_checkpointing", False)
    with pytest.raises(UserError, match="activation_checkpointing: GPT2LMHeadModel does not support"):
        checkpoint_activations(model)
