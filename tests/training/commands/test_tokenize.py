import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from phf import app
from tests.datasets import make_dataset
from training.data.prepare import prepare
from training.settings import resolve_config

TEXTS = ["Good morning. Good evening!", "", "Is it good? It is."] * 3


@pytest.fixture
def dataset(tmp_path):
    return str(make_dataset(tmp_path / "labelled", TEXTS, {"toxicity": lambda sentence: 0.5}))


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_train_a_tokenizer_and_tokenise_with_it(dataset, tmp_path):
    trained = run("tokenizer", "train", dataset, "--vocab-size", 270, "--output", tmp_path / "tok", "--json")
    assert trained.exit_code == 0, trained.output
    facts = json.loads(trained.stdout)
    assert facts["vocab_size"] == 270
    made = run("tokenize", dataset, "--tokenizer", tmp_path / "tok", "--json")
    assert made.exit_code == 0, made.output
    store = json.loads(made.stdout)
    assert store["tokenizer"] == facts["fingerprint"]
    assert (store["documents"], store["sentences"]) == (9, 12)
    assert store["text_bytes"] == sum(len(text) for text in TEXTS)
    assert store["store"].startswith(f"{dataset}.tokens/")
    again = run("tokenize", dataset, "--tokenizer", tmp_path / "tok")
    assert again.exit_code == 0
    assert "9 documents, 12 sentences" in again.stdout
    assert "270 entries" in again.stdout


def test_tokenise_without_a_tokenizer(dataset):
    made = run("tokenize", dataset, "--vocab-size", 260, "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["vocab_size"] == 260


def test_what_is_tokenised_for_a_mixture_is_what_training_on_it_takes(dataset, tmp_path):
    other = str(make_dataset(tmp_path / "other", ["Quite another text. Yes."] * 8, {"toxicity": lambda sentence: 0.1}))
    made = run("tokenize", dataset, "--mix", other, "--vocab-size", 262, "--json")
    assert made.exit_code == 0, made.output
    facts = json.loads(made.stdout)
    mixture = json.dumps([{"dataset": other, "share": 0.5}])
    flags = {"output": "o", "task": "toxicity", "data": {"dataset": dataset, "vocab_size": 262}}
    small = ["data.context_length=8", "data.held_out=0", "model.name=nano", f"data.mixture={mixture}"]
    # Made-up scorers are each its own.
    small.append("data.allow_mixed_scorers=true")
    before = sorted(tmp_path.rglob("*"))
    data = prepare(resolve_config(flags=flags, overrides=[*small, "objective.name=rwr"]))
    assert [str(each.store.path) for each in data.datasets] == [facts["store"], facts["mixed"][0]["store"]]
    assert sorted(tmp_path.rglob("*")) == before
    shown = run("tokenize", dataset, "--mix", other, "--vocab-size", 262)
    assert "9 documents" in shown.stdout
    assert "8 documents" in shown.stdout
    assert run("tokenize", dataset, "--mix", "missing").exit_code == 2


def test_fewer_entries_than_asked_for_are_said(dataset, tmp_path):
    trained = run("tokenizer", "train", dataset, "--output", tmp_path / "tok")
    assert trained.exit_code == 0
    assert "fewer than 8,192" in trained.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tokenize", "missing"], "There is nothing at missing"),
        (["tokenize", "DATASET", "--tokenizer", "/nowhere/at/all"], "Cannot load the tokenizer '/nowhere/at/all'"),
        (["tokenize", "missing", "--tokenizer", "any", "--vocab-size", "8192"], "leave --tokenizer out"),
        (["tokenize", "DATASET", "--store", "DATASET"], "exists, but is not a token store"),
        (["tokenizer", "train", "DATASET", "--output", "DATASET"], "exists already"),
        (["tokenizer", "train", "missing", "--output", "new"], "There is nothing at missing"),
    ],
)
def test_errors_name_what_and_the_remedy(dataset, arguments, message):
    result = run(*(dataset if each == "DATASET" else each for each in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_store_of_another_tokenizer_is_refused(dataset, tmp_path):
    run("tokenizer", "train", dataset, "--vocab-size", 260, "--output", tmp_path / "a")
    run("tokenizer", "train", dataset, "--vocab-size", 265, "--output", tmp_path / "b")
    store = tmp_path / "store"
    assert run("tokenize", dataset, "--tokenizer", tmp_path / "a", "--store", store).exit_code == 0
    refused = run("tokenize", dataset, "--tokenizer", tmp_path / "b", "--store", store)
    assert refused.exit_code == 2
    assert "another tokenizer" in refused.stderr


def test_the_commands_modules_load_nothing_heavy():
    script = (
        "import sys, training.commands.tokenize, training.commands.tokenizer;"
        "heavy = {'numpy', 'torch', 'transformers', 'pyarrow', 'pydantic', 'tokenizers'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
