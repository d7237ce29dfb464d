"""`phf classify`: finetuning on labelled texts."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from typer.testing import CliRunner

import phf
from scorers.errors import UserError
from tests.training.real_runs import make_code_dataset, make_real_run
from training.capability.classifier import Classifier, Schedule, finetune, macro_f1, predict
from training.capability.classify import classify
from training.capability.labelled_texts import read_labelled_texts
from training.measuring_config import ClassificationConfig
from training.model.language_model import load_model
from training.runs.classification_report import classification_path, read_classification

CONFIG = ClassificationConfig(epochs=4, batch_size=8, learning_rate=3e-3, trials=2)


def silent(*_):
    pass


def write(path, rows):
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classify")
    dataset = make_code_dataset(folder / "labelled", 24)
    return {name: make_real_run(dataset, folder / name, name) for name in ("mle", "conditional")}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Two classes of code that differ in their blanks; twice as many of one."""
    rows = [(f"v{n} = {n % 7}\n" if n % 3 else f"v{n}={n % 7} ;\n", bool(n % 3)) for n in range(90)]
    return write(tmp_path_factory.mktemp("texts") / "blanks.jsonl", rows)


@pytest.fixture(scope="module")
def texts(file):
    return read_labelled_texts(file, None, CONFIG)


@pytest.fixture(scope="module")
def report(runs, texts):
    return classify(runs["conditional"], texts, CONFIG, device="cpu", progress=silent)


def test_a_model_learns_what_can_be_learnt(report, texts, runs):
    assert texts.classes == ("false", "true")
    assert report.train + report.test == 90
    assert 8 <= report.test <= 28
    assert report.accuracy.value > 0.95 > report.majority
    assert report.macro_f1.value > 0.95
    assert report.condition == "aligned"
    assert len(report.prefix) >= 2
    assert read_classification(runs["conditional"], "blanks") == report


def test_finished_trials_are_kept_and_others_are_as_if_nothing_had_happened(runs, texts, report):
    run = runs["conditional"]
    assert report.trials[0] != report.trials[1]
    stored = report.model_copy(update={"trials": report.trials[:1]})
    classification_path(run, "blanks").write_text(stored.model_dump_json())
    seen = []
    again = classify(run, texts, CONFIG, device="cpu", progress=lambda stage, *_: seen.append(stage))
    assert again.trials == report.trials
    assert set(seen) == {"blanks, trial 2"}


@pytest.mark.parametrize("change", ["settings", "texts", "run", "damage"])
def test_other_figures_are_not_reused(runs, texts, report, file, change):
    run, config = runs["conditional"], CONFIG.model_copy(update={"epochs": 1, "trials": 1})
    path = classification_path(run, "blanks")
    stored = report.model_copy(update={"config": config, "trials": report.trials[:1]})
    if change == "settings":
        stored = stored.model_copy(update={"config": config.model_copy(update={"batch_size": 9})})
    elif change == "run":
        stored = stored.model_copy(update={"run": "another"})
    elif change == "texts":
        texts = read_labelled_texts(file, None, config.model_copy(update={"seed": 1}))
        assert texts.fingerprint != report.texts
    path.write_text(stored.model_dump_json()[: 100 if change == "damage" else None])
    seen = []
    classify(run, texts, config, device="cpu", progress=lambda stage, *_: seen.append(stage))
    assert seen


def test_texts_of_a_batch_are_classified_as_alone(runs):
    causal = load_model(runs["mle"].model, value_head=False).causal
    classifier = Classifier(causal, 3, seed=1)
    rows = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]]
    together = classifier(rows)
    for index, row in enumerate(rows):
        torch.testing.assert_close(classifier([row])[0], together[index], rtol=1e-5, atol=1e-6)
    # The head sees the last token of each row.
    assert not torch.equal(classifier([[1, 2, 3, 4]])[0], together[0])
    assert predict(classifier, rows, 2).tolist() == together.argmax(dim=-1).tolist()


def test_divergence_is_an_error(runs):
    causal = load_model(runs["mle"].model, value_head=False).causal
    with pytest.raises(UserError, match=r"diverged\. Lower learning_rate"):
        finetune(
            Classifier(causal, 2, seed=0),
            [[1, 2]] * 8,
            np.arange(8) % 2,
            Schedule(50, 2, 1e30),
            seed=0,
            progress=silent,
        )


def test_figures_are_those_of_scikit_learn_and_of_paper():
    generator = np.random.default_rng(0)
    labels, found = generator.integers(0, 4, 60), generator.integers(0, 5, 60)
    # A class that only the model names counts in no mean of the classes that there are.
    expected = f1_score(labels, found, average="macro", labels=[0, 1, 2, 3])
    assert macro_f1(labels, found) == pytest.approx(expected)
    schedule = Schedule(1, 1, 1.0)
    # 20 steps: 2 of warm-up, then 18 down to 1/18.
    assert [schedule.factor(step, 20) for step in (0, 1, 2, 11, 19)] == pytest.approx([0.5, 1, 1, 0.5, 1 / 18])


def test_equal_texts_are_on_one_side(tmp_path):
    rows = [(f"text {n % 20}", n % 2) for n in range(200)]
    texts = read_labelled_texts(write(tmp_path / "t.jsonl", rows), None, CONFIG)
    assert not {each.text for each in texts.train} & {each.text for each in texts.test}


@pytest.mark.parametrize(
    ("rows", "test", "message"),
    [
        ([("secret", 1.5)], None, "line 1: the field 'label' is not a class"),
        ([("x", "a"), ("", "b")], None, "line 2: no text in the field 'text'"),
        ([(f"secret {n}", "a") for n in range(40)], None, "of 1 class, and"),
        ([("secret", "a"), ("y", "b")], [("secret", "a")], "1 text of it also stand"),
        ([("x", "a"), ("y", "b")], [("secret", "c")], "1 class of the texts to test on is not among"),
    ],
)
def test_unusable_texts_are_refused_before_any_work(runs, tmp_path, rows, test, message):
    arguments = ["classify", str(runs["mle"].path), "--labels", write(tmp_path / "train.jsonl", rows)]
    if test is not None:
        arguments += ["--test", write(tmp_path / "test.jsonl", test)]
    done = CliRunner().invoke(phf.app, arguments)
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.output.split())
    assert "secret" not in done.output


def test_the_command(runs, file, tmp_path):
    options = ["--labels", file, "--epochs", "1", "--trials", "1", "--set", "batch_size=32"]
    done = CliRunner().invoke(phf.app, ["classify", *(str(run.path) for run in runs.values()), *options])
    assert done.exit_code == 0, done.output
    assert "2 classes, finetuned on" in done.output
    assert "<|aligned|>" in done.output
    again = CliRunner().invoke(phf.app, ["classify", str(runs["mle"].path), *options, "--json"])
    (found,) = json.loads(again.stdout)["runs"]
    assert found["accuracy"]["value"] == found["trials"][0]["accuracy"]
    assert found["accuracy"]["low"] is None
    missing = CliRunner().invoke(phf.app, ["classify", str(tmp_path), "--labels", file])
    assert missing.exit_code == 2
