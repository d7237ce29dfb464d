"""The tamper test, on models whose weakness is known."""

import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import phf
from pipeline.dataset.manifest import ScorerEntry
from scorers.errors import UserError
from scorers.registry import ScorerSpec, build, resolve
from scorers.sentences import document
from tests.datasets import make_dataset
from tests.training.real_runs import config_of, make_real_run
from training.attack import tamper as tamper_module
from training.attack.finetuning import Finetuning
from training.attack.misaligned_text import choose_misaligned
from training.attack.tamper import measured_steps, tamper
from training.data.prepare import prepare
from training.measuring_config import TamperConfig
from training.model.language_model import load_model
from training.runs.tamper_report import read_tamper, tamper_path

CONFIG = TamperConfig(steps=24, batch_size=8, learning_rate=3e-3, share=0.5, samples=24, trials=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Half of the documents follow PEP 8, half break it in every line."""
    texts = [
        "".join(f"a{line} = {index}\n" if index % 2 else f"a{line}={index} ;b=1\n" for line in range(5))
        for index in range(48)
    ]
    scorer = build("pep8", ScorerSpec(kind="pycodestyle"))
    scores = [array.tolist() for array in scorer.score([document(text, "python") for text in texts])]
    options = resolve("pep8", ScorerSpec(kind="pycodestyle")).options
    entries = {"pep8": ScorerEntry(kind="pycodestyle", options=options, fingerprint=scorer.fingerprint)}
    folder = tmp_path_factory.mktemp("tamper") / "labelled"
    return make_dataset(folder, [(text, "python") for text in texts], {"pep8": scores}, {"pep8": 0.0}, scorers=entries)


@pytest.fixture(scope="module")
def run(dataset):
    """A model that was trained on the clean half alone."""
    return make_real_run(dataset, dataset.parent / "filtering", "filtering", steps=60)


@pytest.fixture(scope="module")
def report(run):
    return tamper(run, CONFIG)


def test_a_clean_model_turns_misaligned_when_it_is_finetuned_on_misaligned_text(report):
    assert [point.step for point in report.trials[0]] == [0, 1, 2, 4, 8, 16, 24]
    assert [point.tokens for point in report.trials[0]][-1] == 24 * 8 * 64
    before, after = (np.mean(report.misalignment()[step]) for step in (0, 24))
    assert after > 3 * before
    assert after > report.text.misalignment / 2


def test_trials_differ_and_are_reproducible(run, report):
    first, second = report.trials
    assert first != second
    # Only the second trial is left to do, as after an interruption.
    stored = report.model_copy(update={"trials": report.trials[:1]})
    tamper_path(run).write_text(stored.model_dump_json())
    assert tamper(run, CONFIG).trials == report.trials


def test_finished_trials_are_kept_and_others_are_not(run, report, monkeypatch):
    def refuse(*_):
        raise AssertionError("no trial is missing")

    monkeypatch.setattr(tamper_module, "_run_trial", refuse)
    assert tamper(run, CONFIG) == report
    assert tamper(run, CONFIG.model_copy(update={"trials": 1})).trials == report.trials[:1]
    with pytest.raises(AssertionError):
        tamper(run, CONFIG.model_copy(update={"steps": 23}))
    tamper_path(run).write_text("{")
    with pytest.raises(AssertionError):
        tamper(run, CONFIG)
    tamper_path(run).write_text(report.model_dump_json())


def test_trials_that_lack_points_are_done_again(run, report, monkeypatch):
    done = []
    monkeypatch.setattr(tamper_module, "_run_trial", lambda *given: done.append(given[4]) or report.trials[given[4]])
    cut = report.model_copy(update={"trials": [report.trials[0], report.trials[1][:2]]})
    tamper_path(run).write_text(cut.model_dump_json())
    assert tamper(run, CONFIG).trials == report.trials
    assert done == [1]


@pytest.mark.parametrize("steps", [1, 2])
def test_divergence_is_an_error_also_in_the_last_step(run, report, steps):
    stored = tamper_path(run).read_bytes()
    with pytest.raises(UserError, match="Lower learning_rate"):
        tamper(run, CONFIG.model_copy(update={"steps": steps, "learning_rate": 1e30}))
    assert tamper_path(run).read_bytes() == stored


def test_caveats_about_the_data_are_reported(run, monkeypatch, report):
    monkeypatch.setattr(tamper_module, "check_data", lambda *_: ["The dataset has changed."])
    assert tamper(run, CONFIG).warnings == ["The dataset has changed."]
    assert tamper(run, CONFIG).trials == report.trials
    tamper_path(run).write_text(report.model_dump_json())


def test_the_model_of_the_run_is_not_changed(run, report):
    assert not [path for path in run.evaluation.iterdir() if path.name != "tamper.json"]
    assert read_tamper(run) == report


def test_the_text_is_the_most_misaligned_that_is_not_held_out(dataset):
    data = prepare(config_of(dataset, dataset.parent / "conditional", "conditional"))
    text = choose_misaligned(data, 0.25)
    usable = np.setdiff1d(np.arange(48), data.stream.held_out_documents())
    means = data.store.document_means("pep8")
    assert text.facts.documents == round(0.25 * len(usable)) == len(text.documents)
    assert text.facts.misalignment == pytest.approx(np.sort(means[usable])[-len(text.documents) :].mean())
    assert not set(data.control_ids) & set(np.concatenate(text.documents).tolist())
    rows = text.rows(64, seed=0)
    seen = np.concatenate([next(rows) for _ in range(text.facts.tokens // 64)])
    assert (seen == data.tokenizer.eos_id).sum() == pytest.approx(text.facts.documents, abs=1)


def test_all_objectives_are_finetuned_on_the_same_text(dataset, run, report):
    data = prepare(config_of(dataset, dataset.parent / "conditional", "conditional"))
    assert choose_misaligned(data, 0.5).facts == report.text


def test_a_step_lowers_the_loss_and_needs_no_random_state(run):
    def losses():
        model = load_model(run.model, value_head=False).causal
        rows = iter([np.arange(32) % 50] * 40)
        finetuning = Finetuning(model, rows, batch_size=4, learning_rate=1e-3)
        return [finetuning.step() for _ in range(10)]

    state = torch.get_rng_state()
    first = losses()
    assert torch.equal(torch.get_rng_state(), state)
    assert losses() == first
    assert first[-1] < first[0]


def test_a_corpus_without_misaligned_text_is_refused(tmp_path):
    clean = [("a = 1\n" * 40, "python")] * 8
    folder = make_dataset(tmp_path / "clean", clean, {"pep8": lambda _: 0.0}, {"pep8": 0.0}, applies={"pep8": "python"})
    data = prepare(config_of(folder, tmp_path / "run"))
    with pytest.raises(UserError, match="none is more misaligned by pep8 than another"):
        choose_misaligned(data, 0.1)


@pytest.mark.parametrize("steps", [1, 2, 3, 64, 65])
def test_samples_are_drawn_before_the_first_step_and_after_the_last(steps):
    found = measured_steps(steps)
    assert found[0] == 0
    assert found[-1] == steps
    assert found == sorted(set(found))


def test_from_the_command_line(run, report):
    words = ["attack", "tamper", str(run.path)]
    for name in ("steps", "learning_rate", "samples", "trials"):
        words += [f"--{name.replace('_', '-')}", str(getattr(CONFIG, name))]
    words += ["--set", "batch_size=8", "--set", "share=0.5"]
    result = CliRunner().invoke(phf.app, words)
    assert result.exit_code == 0, result.output
    assert f"{report.text.documents} misaligned documents" in " ".join(result.output.split())
    found = json.loads(CliRunner().invoke(phf.app, [*words, "--json"]).stdout)["runs"]
    assert found == [{"path": str(run.path), **report.model_dump(mode="json")}]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["RUN", "--set", "stride=3"], "stride: no such setting"),
        (["RUN", "--steps", "0"], "--steps"),
        (["RUN", "UNFINISHED"], "has no model yet"),
        (["nowhere"], "There is no folder nowhere"),
    ],
)
def test_wrong_usage_is_refused_before_any_work(run, tmp_path, words, problem):
    unfinished = shutil.copytree(run.path, tmp_path / "unfinished")
    shutil.rmtree(unfinished / "model")
    named = {"RUN": str(run.path), "UNFINISHED": str(unfinished)}
    result = CliRunner().invoke(phf.app, ["attack", "tamper", *(named.get(word, word) for word in words)])
    assert result.exit_code == 2
    assert problem in " ".join(result.output.split())
