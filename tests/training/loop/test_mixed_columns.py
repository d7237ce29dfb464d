"""Several columns of several datasets in one run: the thresholds of each dataset apply to its own sentences."""

import json
import signal

import numpy as np
import pytest
from rich.console import Console

from pipeline.dataset.manifest import ScorerEntry
from pipeline.dataset.tags import is_aligned
from scorers.errors import StoppedError, UserError
from tests.datasets import make_dataset
from tests.training.jobs import figures
from tests.training.stores import byte_tokenizer
from training.data.prepare import prepare
from training.loop.callbacks import Callback
from training.loop.train import train
from training.runs.folder import RunFolder
from training.settings import resolve_config

COLUMNS = "data.columns={toxicity: 1, pii: 0.5}"
FEW = [f"Note {n} on the weather. It rained, day {n}." for n in range(60)]
MANY = [f"Letter {n} to a friend. Come and see us, {n}." for n in range(80)]


def entry(kind, version):
    return ScorerEntry(kind=kind, options={}, fingerprint=f"{kind}-{version}")


def labelled(folder, texts, thresholds, version="1"):
    generator = np.random.default_rng(len(texts))
    scores = {
        column: generator.integers(0, 100, (len(texts), 2)).astype(float).__truediv__(100).tolist()
        for column in ("toxicity", "pii")
    }
    scorers = {"toxicity": entry("linear", version), "pii": entry("scrubadub", "1")}
    return make_dataset(folder, texts, scores, thresholds, scorers=scorers)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("mixed")
    byte_tokenizer(FEW + MANY).save_pretrained(place / "tokenizer")
    return {
        "tokenizer": place / "tokenizer",
        "few": labelled(place / "few", FEW, {"toxicity": 0.3, "pii": 0.7}),
        "many": labelled(place / "many", MANY, {"toxicity": 0.6, "pii": 0.5}),
        "other": labelled(place / "other", MANY[:50], {"toxicity": 0.6, "pii": 0.5}, "2"),
        "one": make_dataset(place / "one", MANY, {"toxicity": [[0.0, 0.1]] * len(MANY)}, {"toxicity": 0.05}),
    }


@pytest.fixture
def config(folders, tmp_path):
    def of(objective, *overrides, second="many", run="run", **mixed):
        mixture = [{"dataset": str(folders[second]), "share": 0.4, **mixed}]
        given = {
            "output": str(tmp_path / run),
            "task": "toxicity",
            "data": {"dataset": str(folders["few"]), "tokenizer": str(folders["tokenizer"])},
            "model": {"name": "nano"},
        }
        usual = ["data.context_length=32", "data.held_out=0.1", "training.batch_size=4", "training.log_every=1"]
        usual += ["training.num_tokens=1024", "tracking.tensorboard=false", f"data.mixture={json.dumps(mixture)}"]
        return resolve_config(flags=given, overrides=[*usual, COLUMNS, f"objective.name={objective}", *overrides])

    return of


def aligned_by_each(dataset, limits):
    parts = [is_aligned(dataset.store.scores(column), np.float32(limit)) for column, limit in limits.items()]
    return np.logical_and.reduce(parts)


@pytest.mark.parametrize("objective", ["conditional", "unlikelihood"])
def test_a_sentence_is_aligned_when_it_is_by_each_column_of_its_own_dataset(config, objective):
    data = prepare(config(objective))
    limits = [{"toxicity": 0.3, "pii": 0.7}, {"toxicity": 0.6, "pii": 0.5}]
    assert len(data.datasets) == len(limits)
    for each, own in zip(data.datasets, limits, strict=True):
        combined = each.store.scores(each.streams[0].column)
        expected = aligned_by_each(each, own)
        assert 0 < expected.sum() < len(expected)
        assert (is_aligned(combined, np.float32(0)) == expected).all()
        assert each.threshold.value == 0
    assert data.config.objective.thresholds == pytest.approx(limits[0])
    assert data.config.data.mixture[0].thresholds == pytest.approx(limits[1])
    # What was filled in is what is chosen the next time.
    again = prepare(data.config)
    assert again.config == data.config
    for one, other in zip(again.datasets, data.datasets, strict=True):
        assert (one.streams[0].column, one.streams[0].options) == (other.streams[0].column, other.streams[0].options)


def test_given_thresholds_are_for_all_that_the_same_scorer_has_scored(config):
    given = "objective.thresholds={toxicity: 0.2, pii: 0.4}"
    data = prepare(config("conditional", given))
    assert [{c: t.value for c, t in each.thresholds.items()} for each in data.datasets] == [
        {"toxicity": 0.2, "pii": 0.4},
        {"toxicity": 0.2, "pii": 0.4},
    ]
    data = prepare(config("conditional", given, second="other", thresholds={"pii": 0.9}))
    found = {column: choice.value for column, choice in data.datasets[1].thresholds.items()}
    assert found == pytest.approx({"toxicity": 0.6, "pii": 0.9})


def test_a_run_on_them_goes_on_as_if_it_had_not_been_stopped(config, tmp_path):
    class Stop(Callback):
        def after_step(self, trainer, step):
            if step.number == 3:
                signal.raise_signal(signal.SIGTERM)

    quiet = Console(quiet=True)
    train(config("conditional", run="whole"), quiet)
    with pytest.raises(StoppedError):
        train(config("conditional"), quiet, callbacks=[Stop()])
    facts = train(config("conditional"), quiet)
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")
    assert facts.columns == {"toxicity": 1.0, "pii": 0.5}
    assert len(RunFolder(tmp_path / "run").read_facts().mixture) == 2
    with pytest.raises(UserError, match=r"data\.mixture\.0\.thresholds\.pii: 0\.5 in the run, 0\.9 now"):
        train(config("conditional", thresholds={"pii": 0.9}), quiet)


@pytest.mark.parametrize(
    ("objective", "overrides", "mixed", "message"),
    [
        ("conditional", [], {"second": "one"}, "has no score column 'pii'"),
        ("conditional", [], {"column": "pii"}, "remove its own column"),
        ("conditional", [], {"threshold": 0.1}, r"give its thresholds by column \(thresholds\)"),
        ("conditional", [], {"thresholds": {"pep8": 0}}, "no 'pep8'. It has: toxicity, pii"),
        ("conditional", ["objective.quantiles=2"], {"thresholds": {"pii": 0}}, "takes the place of thresholds"),
        ("rwr", [], {"thresholds": {"pii": 0}}, "rwr has no threshold of its own for"),
        ("rwr", [], {"second": "other"}, r"scored differently .*toxicity by linear-1.*toxicity by linear-2"),
    ],
)
def test_what_does_not_go_together_is_refused(config, objective, overrides, mixed, message):
    with pytest.raises(UserError, match=message):
        prepare(config(objective, *overrides, **mixed))


def test_the_objectives_that_weigh_take_the_weighted_sum_everywhere(config):
    data = prepare(config("awr"))
    for each in data.datasets:
        toxicity, pii = (each.store.scores(column).astype(np.float64) for column in ("toxicity", "pii"))
        combined = each.store.scores(each.streams[0].column)
        assert np.allclose(combined, toxicity + 0.5 * pii, atol=1e-7)
