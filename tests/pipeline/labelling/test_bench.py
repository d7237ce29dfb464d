import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from phf import app
from pipeline.config import LabelConfig
from pipeline.corpus import sampling
from pipeline.corpus.records import Record
from pipeline.labelling.estimate import ratio
from scorers import registry
from tests.pipeline.toy_scorers import ToyScorer

WORD = "Xylophonist"


class SleepyScorer(ToyScorer):
    """Takes 4 ms for a document that contains `SLOW`, and no time for others."""

    def score(self, documents):
        time.sleep(0.004 * sum("SLOW" in each.text for each in documents))
        return [np.zeros(len(each.ends), np.float32) for each in documents]


class NowhereScorer(ToyScorer):
    def __init__(self, name, options, execution):
        raise RuntimeError(f"no such device {WORD}")


@pytest.fixture(autouse=True)
def kinds(monkeypatch):
    monkeypatch.setitem(registry.KINDS, "toy", "tests.pipeline.toy_scorers:ToyScorer")
    for name in ("Sleepy", "Nowhere"):
        monkeypatch.setitem(registry.KINDS, name.lower(), f"{__name__}:{name}Scorer")


def write(path, texts):
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    return path


def run(*arguments):
    return CliRunner().invoke(app, ["bench", "scorers", *map(str, arguments)])


def facts_of(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_every_step_has_its_speed_its_share_its_failures_and_its_cost(tmp_path):
    texts = [f"{WORD} {number}. Another one." for number in range(100)] + ["REFUSE this."] * 3 + ["SKIP this."] * 2
    corpus = write(tmp_path / "corpus.jsonl", texts)
    with corpus.open("a") as file:
        file.write("no json\n")
    facts = facts_of(corpus, "-s", "toy", "-s", "pep8", "--set", "unit_size=200", "--total", "1GB", "--seconds", 1)
    read, split, toy, pep8 = facts["steps"]
    assert [each["name"] for each in facts["steps"]] == ["read", "split", "toy", "pep8"]
    assert sum(each["share"] for each in facts["steps"]) == pytest.approx(1)
    assert facts["corpus"]["units"] > facts["corpus"]["units_sampled"] == 16
    assert facts["corpus"]["text_bytes"] == pytest.approx(sum(map(len, texts)), rel=0.2)
    assert facts["total_bytes"] == 1e9
    assert read["failed"] in ({}, {"not-json": 1})
    assert split["documents"] >= toy["documents"] + sum(toy["failed"].values()) + toy["left_out"] > 0
    assert set(toy["failed"]) <= {"deadline"}
    assert toy["sentences_per_s"] > 0
    assert (pep8["documents"], pep8["hours"]["value"] >= 0) == (0, True)
    assert pep8["left_out"] > 0
    for step in facts["steps"]:
        assert 0 <= step["hours"]["low"] <= step["hours"]["value"] <= step["hours"]["high"]
    assert facts["core_hours"]["value"] == pytest.approx(sum(each["hours"]["value"] for each in facts["steps"]))
    assert facts["gpu_hours"]["value"] == 0


def test_failures_are_counted_by_reason_and_no_text_is_shown(tmp_path):
    corpus = write(tmp_path / "corpus.jsonl", [f"{WORD} {number}." for number in range(20)] + [f"REFUSE {WORD}."] * 20)
    result = run(corpus, "-s", "toy", "--seconds", 1, "--total-tokens", "1T")
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    assert "deadline" in shown
    assert "for 4.2 TB" in shown
    assert WORD not in result.output


def test_the_cost_is_for_the_whole_corpus_not_its_beginning(tmp_path):
    texts = [f"Quick, number {number:04}." for number in range(1000)] + [
        f"SLOW, number {number:05}." for number in range(1000)
    ]
    corpus = write(tmp_path / "corpus.jsonl", texts)
    facts = facts_of(corpus, "-s", "sleepy", "--set", "unit_size=2000", "--seconds", 1)
    hours = facts["steps"][2]["hours"]
    true = 1000 * 0.004 / 3600
    assert hours["value"] == pytest.approx(true, rel=0.4)
    assert hours["low"] < true < hours["high"]


def test_a_limit_and_few_documents_are_enough(tmp_path):
    corpus = write(tmp_path / "corpus.jsonl", ["One sentence. Two sentences."] * 50)
    facts = facts_of(corpus, "-s", "toy", "--limit", "300B")
    assert facts["steps"][2]["bytes"] <= 600
    single = facts_of(write(tmp_path / "single.jsonl", ["Alone."]), "-s", "toy", "--threads", 2)
    assert single["steps"][2]["documents"] == 1
    assert single["machine"]["threads"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("corpus.jsonl", "-s", "toy", "--total", "1TB", "--total-tokens", "1T"), "not both"),
        (("corpus.jsonl", "-s", "toy", "--total", "big"), "not a size"),
        (("corpus.jsonl", "-s", "toy", "--total-tokens", "many"), "not a number of tokens"),
        (("corpus.jsonl",), "No scorer is given"),
        (("corpus.jsonl", "-s", "toy=lienar"), "no scorer of kind"),
        (("nowhere.jsonl", "-s", "toy"), "nowhere.jsonl"),
        (("empty.jsonl", "-s", "toy"), "no record"),
        (("corpus.jsonl", "-s", "nowhere"), "phf doctor"),
    ],
)
def test_wrong_usage_has_status_2_and_a_reason(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "corpus.jsonl", ["One."])
    (tmp_path / "empty.jsonl").write_text("")
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert WORD not in result.output


def test_of_a_large_corpus_some_files_are_planned_and_the_whole_is_estimated(tmp_path, monkeypatch):
    for number in range(40):
        write(tmp_path / f"{number:02}.jsonl", [f"Text {line} of it." for line in range(50)])
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    monkeypatch.setattr(sampling, "_MOST_PLANNED", size // 2)
    config = LabelConfig(inputs=[str(tmp_path)], output="x", scorers={"toy": "toy"})
    sample = sampling.sample_corpus(config, lambda *_: None)
    assert (sample.sources, sample.size) == (40, size)
    assert sample.planned == pytest.approx(size * 16 / 40, rel=0.05)
    assert sample.text_bytes == pytest.approx(sum(len(f"Text {line} of it.") for line in range(50)) * 40, rel=0.05)


@given(st.integers(1, 40))
def test_any_beginning_of_the_pieces_is_spread_over_all_of_them(count):
    pieces = [[Record("", number, "", "", "{}", "prose", "")] for number in range(count)]
    order = [piece[0].position for piece in sampling.spread(pieces)]
    assert sorted(order) == list(range(count))
    for first in (2, 4, 8):
        if count >= 2 * first:
            gaps = np.diff(sorted([*order[:first], order[0] + count]))
            assert gaps.max() <= 2 * gaps.min() + 2


@given(
    st.lists(st.tuples(st.floats(0, 1e3), st.floats(1, 1e6)), min_size=1, max_size=20),
    st.floats(0.1, 10),
)
def test_the_interval_contains_the_ratio_and_scales_with_it(slices, factor):
    amounts, sizes = zip(*slices, strict=True)
    found = ratio(amounts, sizes)
    assert found.value == pytest.approx(sum(amounts) / sum(sizes))
    assert 0 <= found.low <= found.value <= found.high
    assert found.times(factor).high == pytest.approx(found.high * factor)


def test_the_interval_is_students_for_equal_slices():
    found = ratio([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    assert (found.value, found.low) == (2.0, 0.0)
    assert found.high == pytest.approx(2 + 4.30 / 3**0.5, rel=1e-3)
    assert ratio([1.0], [2.0]).high == 0.5
    assert ratio([], []).value == 0
