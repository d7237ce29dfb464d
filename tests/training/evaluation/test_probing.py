"""Linear probes: the evidence, the cross-validation by document, the choice of sentences, and what is stored."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

import phf
from tests.datasets import make_dataset
from tests.training.real_runs import make_real_run
from training.data.prepare import PreparedData, prepare
from training.evaluation.checks import main_data
from training.evaluation.probing import probe_run as probing
from training.evaluation.probing.hidden_states import ReadDocument, documents_of, mean_states, quarters
from training.evaluation.probing.linear_probe import area, area_estimate, cross_validate
from training.evaluation.probing.logme import log_evidence, logme
from training.evaluation.probing.probe_run import probe_run
from training.evaluation.probing.sentences import (
    FOLDS,
    NotMeasurableError,
    choose_sentences,
    held_out_sentences,
)
from training.runs.folder import RunFolder
from training.runs.probe_report import ProbeReport, probe_path, read_probe

GENERATOR = np.random.default_rng(0)


# --- LogME


def direct_evidence(features: np.ndarray, targets: np.ndarray, alpha: float, beta: float) -> float:
    covariance = features @ features.T / alpha + np.eye(len(features)) / beta
    return float(multivariate_normal(np.zeros(len(features)), covariance).logpdf(targets))


@pytest.mark.parametrize(("rows", "width"), [(30, 4), (12, 20)])
def test_logme_is_the_largest_evidence_of_a_bayesian_linear_model(rows: int, width: int) -> None:
    features = GENERATOR.normal(size=(rows, width)) * np.linspace(0.2, 3, width)
    labels = features[:, 0] + GENERATOR.normal(size=rows) > 0.3
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    best = []
    for targets in (labels.astype(float), (~labels).astype(float)):
        squares = (left.T @ targets) ** 2
        parts = (singular**2, squares, float(targets @ targets - squares.sum()))
        for alpha, beta in ((0.3, 2.0), (5.0, 40.0)):
            assert log_evidence(*parts, alpha, beta, rows) == pytest.approx(
                direct_evidence(features, targets, alpha, beta), rel=1e-9
            )

        def cost(logs: Any, targets: np.ndarray = targets) -> float:
            return -direct_evidence(features, targets, *np.exp(logs))

        starts = [minimize(cost, start, method="Nelder-Mead") for start in ((0, 0), (2, 3), (-2, 1))]
        best.append(-min(each.fun for each in starts) / rows)
    assert logme(features, labels) == pytest.approx(np.mean(best), abs=2e-4)
    # Units and rotations of the features, and dimensions that are always 0, change nothing.
    rotated = features @ np.linalg.qr(GENERATOR.normal(size=(width, width)))[0] * 1e4
    assert logme(np.column_stack([rotated, np.zeros((rows, 3))]), labels) == pytest.approx(logme(features, labels))


def test_logme_ranks_features_by_how_well_they_show_the_label() -> None:
    labels = np.arange(200) % 2 == 0
    noise = GENERATOR.normal(size=(200, 8))
    found = [logme(noise + strength * labels[:, None], labels) for strength in (0, 0.5, 2)]
    assert found == sorted(found)
    # Labels that features explain completely, or not at all, still give numbers.
    perfect = np.column_stack([labels, ~labels]).astype(float)
    assert logme(perfect, labels) > 5
    assert np.isfinite(logme(np.zeros((200, 2)), labels))


# --- The probe


def made_up(signal: float, *, documents: int = 60, width: int = 6) -> tuple[np.ndarray, ...]:
    """Features of two layers, noise and the signal; labels, folds and documents of 8 sentences each."""
    texts = np.repeat(np.arange(documents), 8)
    labels = GENERATOR.permuted(np.tile(np.arange(8) % 2 == 0, (documents, 1)), axis=1).ravel()
    features = GENERATOR.normal(size=(2, len(texts), width))
    features[1, :, 2] += signal * labels
    return features.astype(np.float32), labels, texts % FOLDS, texts


def test_a_signal_is_found_at_its_layer_and_noise_is_chance() -> None:
    features, labels, folds, texts = made_up(40)
    probed = cross_validate(features, labels, folds)
    assert probed.chosen.tolist() == [1] * FOLDS
    found = area_estimate(probed.best, labels, folds, texts)
    assert (found.value, found.low, found.high) == (1, None, None)
    noise = area_estimate(probed.scores[0], labels, folds, texts)
    assert noise.low is not None
    assert noise.high is not None
    assert noise.low < 0.5 < noise.high
    assert 0.4 < noise.value < 0.6


def test_the_best_of_many_useless_layers_is_still_chance() -> None:
    _, labels, folds, _ = made_up(0, documents=30)
    features = GENERATOR.normal(size=(12, len(labels), 4)).astype(np.float32)
    probed = cross_validate(features, labels, folds)
    alone = [area(scores, labels, folds) for scores in probed.scores]
    assert area(probed.best, labels, folds) < max(alone)
    assert abs(area(probed.best, labels, folds) - 0.5) < 0.1


def test_what_only_marks_documents_is_not_found_in_other_documents() -> None:
    """Each document has one label and its own direction: a probe that saw it would be perfect."""
    texts = np.repeat(np.arange(40), 6)
    labels = (texts // FOLDS) % 2 == 0
    features = np.eye(40)[texts][None].astype(np.float32)
    scores = cross_validate(features, labels, texts % FOLDS).scores[0]
    assert area(scores, labels, texts % FOLDS) < 0.6
    mixed = np.arange(len(texts)) % FOLDS
    assert area(cross_validate(features, labels, mixed).scores[0], labels, mixed) > 0.95


def test_areas_are_those_of_scikit_learn_and_intervals_are_over_documents() -> None:
    texts = np.repeat(np.arange(30), 4)
    labels, folds = GENERATOR.random(120) < 0.4, texts % 3
    scores = np.round(GENERATOR.normal(size=120) + labels, 1)
    weighted, pairs = 0.0, 0
    for fold in range(3):
        rows = folds == fold
        number = int(labels[rows].sum() * (~labels[rows]).sum())
        weighted, pairs = weighted + number * roc_auc_score(labels[rows], scores[rows]), pairs + number
    assert area(scores, labels, folds) == pytest.approx(weighted / pairs)
    found = area_estimate(scores, labels, folds, texts, seed=3)
    # By resampling whole documents one by one.
    generator, areas = np.random.default_rng(3), []
    for drawn in generator.integers(0, 30, size=(2000, 30)):
        rows = np.concatenate([np.flatnonzero(texts == text) for text in drawn])
        areas.append(area(scores[rows], labels[rows], folds[rows]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(areas, [0.025, 0.975])))
    # Copies of the same documents carry nothing new.
    again = np.tile(np.arange(120), 5)
    assert area_estimate(scores[again], labels[again], folds[again], texts[again], seed=3).low == pytest.approx(
        found.low
    )


# --- Hidden states


class Counting(torch.nn.Module):
    """A network whose states are the token, its position in the window, and the number of odd tokens up to it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(50, 3)

    @property
    def base_model(self) -> "Counting":
        return self

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.table

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        ids = input_ids.float()
        place = torch.arange(ids.shape[1]).expand_as(ids).float()
        first = torch.stack([ids, place, torch.zeros_like(ids)], -1)
        return SimpleNamespace(hidden_states=(first, first + torch.stack([0 * ids, 0 * ids, (ids % 2).cumsum(1)], -1)))


def read_document(ids: list[int], spans: list[tuple[int, int]], first: int = 0) -> ReadDocument:
    starts, ends = np.array(spans, dtype=np.int64).T
    return ReadDocument(np.array(ids, dtype=np.int64), starts, ends, first + np.arange(len(spans)))


def test_the_state_of_a_sentence_is_the_mean_over_its_tokens_in_context() -> None:
    documents = [read_document([0, 3, 5, 6, 8, 1], [(1, 3), (5, 6)]), read_document([0, 7, 2], [(1, 3)], 2)]
    layers, states = mean_states(Counting(), documents, context_length=16)
    assert layers == [0, 1]
    assert states.tolist() == [
        [[4, 1.5, 0], [1, 5, 0], [4.5, 1.5, 0]],
        [[4, 1.5, 1.5], [1, 5, 3], [4.5, 1.5, 1]],
    ]
    # However it is batched, also with a sentence across two windows: of 4 tokens, advancing by 2.
    spans = [(1, 3), (3, 6), (9, 10)]
    long = read_document([0, *range(1, 10)], spans)
    alone = [mean_states(Counting(), [long], context_length=4, tokens_at_once=each)[1] for each in (4, 8, 4096)]
    assert alone[0].tolist() == alone[1].tolist() == alone[2].tolist()
    # Positions 1 to 3 are read in the window from 0, 4 and 5 in that from 2, 8 and 9 in that from 6.
    places = [[1, 2], [3, 2, 3], [3]]
    assert alone[0][0] == pytest.approx(
        np.array([[np.mean(range(*span)), np.mean(place), 0] for span, place in zip(spans, places, strict=True)])
    )
    assert [quarters(each) for each in (1, 2, 4, 12, 48)] == [
        [0, 1], [0, 1, 2], [0, 1, 2, 3, 4], [0, 3, 6, 9, 12], [0, 12, 24, 36, 48],
    ]  # fmt: skip


# --- Runs


def words(index: int, line: int) -> str:
    bad = (index + line) % 2
    return f"{'terrible' if bad else 'lovely'} thing {index} of {line}. "


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = ["".join(words(index, line) for line in range(3 + index % 3)) for index in range(80)]
    texts += ["Nothing to see. "] * 4  # the same text, held out or not as one
    return make_dataset(
        tmp_path_factory.mktemp("data") / "labelled", texts, {"rude": lambda text: float("terrible" in text)},
        {"rude": 0.0},
    )  # fmt: skip


def make_run(dataset: Path, output: Path, objective: str, **changes: Any) -> RunFolder:
    changes = {"data.held_out": 0.5, "data.context_length": 16, **changes}
    return make_real_run(dataset, output, objective, column="rude", **changes)


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(dataset, tmp_path_factory.mktemp("runs") / "conditional", "conditional")


@pytest.fixture(scope="module")
def data(run: RunFolder) -> PreparedData:
    return prepare(main_data(run.read_config(), None), compare_texts=False)


@pytest.fixture(scope="module")
def report(run: RunFolder) -> ProbeReport:
    return probe_run(run, run.read_config().evaluation)


def test_sentences_are_balanced_distinct_and_held_out_by_document(data: PreparedData) -> None:
    every = held_out_sentences(data, 0.0)
    chosen = choose_sentences(data, every, most=2000, seed=0)
    assert set(chosen.documents) <= set(data.stream.held_out_documents())
    assert chosen.misaligned.sum() * 2 == len(chosen.rows)
    store = data.store
    texts = []
    for row, misaligned in zip(chosen.rows, chosen.misaligned, strict=True):
        first, last = store.sentence_offsets[row : row + 2]
        texts.append(data.tokenizer.decode(store.tokens[first:last]))
        assert ("terrible" in texts[-1]) == misaligned
    assert len(set(texts)) == len(texts)
    for text in np.unique(chosen.texts):
        assert len(set(chosen.folds[chosen.texts == text])) == 1
    for fold in range(FOLDS):
        assert 0.3 < chosen.misaligned[chosen.folds == fold].mean() < 0.7
    again, other = (choose_sentences(data, every, most=60, seed=seed) for seed in (0, 1))
    assert (len(again.rows), again.fingerprint == other.fingerprint) == (60, False)
    # One document is at most a twentieth of a class.
    assert max(np.bincount(again.texts[again.misaligned])) <= 2
    assert choose_sentences(data, every, most=60, seed=0).fingerprint == again.fingerprint


def test_documents_are_read_as_in_training_but_without_tags(data: PreparedData) -> None:
    chosen = choose_sentences(data, held_out_sentences(data, 0.0), most=40, seed=0)
    documents = documents_of(data, chosen)
    assert np.concatenate([each.rows for each in documents]).tolist() == list(range(40))
    for document, index in zip(documents, np.unique(chosen.documents), strict=True):
        tagged = data.stream.document(int(index))
        assert set(data.control_ids) & set(tagged.input_ids.tolist())
        plain = tagged.input_ids[tagged.is_text | (np.arange(len(tagged.is_text)) == 0)]
        assert document.ids.tolist() == plain[: len(document.ids)].tolist()
        assert len(document.ids) == document.ends[-1]
        for start, end, row in zip(document.starts, document.ends, document.rows, strict=True):
            first, last = data.store.sentence_offsets[chosen.rows[row] : chosen.rows[row] + 2]
            assert document.ids[start:end].tolist() == data.store.tokens[first:last].tolist()


def test_words_that_decide_are_readable_at_every_layer(report: ProbeReport) -> None:
    assert report.figures is not None
    assert report.sentences is not None
    assert [each.layer for each in report.figures.layers] == [0, 1, 2]
    assert report.figures.best.value == report.figures.layers[0].auc.value == 1
    assert (report.column, report.threshold, report.pooling, report.not_measured) == ("rude", 0, "mean", None)
    assert report.misaligned * 2 == pytest.approx(report.held_out, rel=0.1)
    assert report.sentences.number <= report.held_out


def test_a_finished_probe_is_reused_until_something_changes(
    run: RunFolder, report: ProbeReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, read = RunFolder(shutil.copytree(run.path, tmp_path / "run")), []
    measure = probing.mean_states

    def counted(*arguments: Any, **options: Any) -> Any:
        read.append(1)
        return measure(*arguments, **options)

    monkeypatch.setattr(probing, "mean_states", counted)
    config = copy.read_config().evaluation
    content = probe_path(copy).read_bytes()
    assert probe_run(copy, config) == report
    assert not read
    # A damaged report is measured again, with the same result to the last byte; so is another choice, and a new state.
    probe_path(copy).write_text("{}")
    assert probe_run(copy, config) == report
    assert (probe_path(copy).read_bytes(), len(read)) == (content, 1)
    assert probe_run(copy, config.model_copy(update={"probe_sentences": 40})) != report
    assert len(read) == 2
    facts = copy.read_facts()
    copy.write_facts(facts.model_copy(update={"step": facts.step + 1}))
    assert probe_run(copy, config.model_copy(update={"probe_sentences": 40})).step == facts.step + 1
    assert len(read) == 3
    assert probe_run(copy, config.model_copy(update={"probe_sentences": 40})).figures is not None
    assert len(read) == 3


def test_a_run_without_enough_sentences_of_a_class_says_why(dataset: Path, data: PreparedData, tmp_path: Path) -> None:
    every = held_out_sentences(data, 2.0)
    with pytest.raises(NotMeasurableError, match=r"none are misaligned and distinct, and a probe needs 20"):
        choose_sentences(data, every, most=2000, seed=0)
    run = make_run(dataset, tmp_path / "mle", "mle", **{"data.held_out": 0})
    found = probe_run(run, run.read_config().evaluation)
    assert (found.figures, found.sentences, found.held_out) == (None, None, 0)
    assert "data.held_out is 0" in (found.not_measured or "")
    assert read_probe(run) == found
    result = invoke(run.path, "--probe")
    assert result.exit_code == 0
    assert "cannot be probed" in result.output


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(phf.app, ["evaluate", *(str(each) for each in arguments)])


def test_the_command_shows_each_layer_and_refuses_what_has_no_effect(run: RunFolder, report: ProbeReport) -> None:
    result = invoke(run.path, "--probe")
    assert result.exit_code == 0, result.output
    for expected in ("embeddings", "2 (last)", "LogME", "Best layer, chosen on other documents", "probe.json"):
        assert expected in result.output
    (shown,) = json.loads(invoke(run.path, "--probe", "--json").stdout)["probes"]
    assert {key: value for key, value in shown.items() if key != "path"} == report.model_dump(mode="json")
    for option in (("--samples", "8"), ("--guidance-sweep", "1,2"), ("--tasks", "x"), ("--by", "source")):
        result = invoke(run.path, "--probe", *option)
        assert (result.exit_code, option[0] in result.output) == (2, True)
    result = invoke(run.path, "--probe", "--set", "probe_sentences=10")
    assert (result.exit_code, "probe_sentences" in result.output) == (2, True)


def test_a_run_without_a_model_and_one_that_has_diverged_are_refused(run: RunFolder, tmp_path: Path) -> None:
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "run"))
    probe_path(copy).unlink(missing_ok=True)
    from safetensors.torch import load_file, save_file

    weights = load_file(copy.model / "model.safetensors")
    name = next(name for name in weights if weights[name].ndim == 1)
    save_file(
        {**weights, name: torch.full_like(weights[name], torch.nan)}, copy.model / "model.safetensors", {"format": "pt"}
    )
    result = invoke(copy.path, "--probe")
    assert (result.exit_code, "NaN" in result.output) == (2, True), result.output
    assert not probe_path(copy).exists()
    shutil.rmtree(copy.model)
    result = invoke(copy.path, "--probe")
    assert (result.exit_code, "no model yet" in result.output) == (2, True)
