import io
import json

import numpy as np
import pyarrow.fs as pafs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from phf import app
from pipeline.checking.examples import find_examples
from pipeline.checking.inspect import PERCENTILES, inspect_dataset
from pipeline.checking.quarantine import Entry, Quarantine
from pipeline.commands.inspect_view import show_quarantine, show_report
from pipeline.dataset import LabelledDataset, open_dataset
from scorers.formatting import number, shortened
from scorers.terminal import Terminal
from tests.datasets import make_dataset

DOCUMENTS = ["Nice. Fine. Bad!", "", ("x = 1\ny = 2\n", "python"), "Worse. Nice."]
SCORES = {"nice": 0.0, "fine": 0.02, "bad": 0.9, "worse": 0.95}


def toxicity(sentence):
    return SCORES.get(sentence.strip().rstrip(".!").lower(), 0.5)


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(
        tmp_path / "made",
        DOCUMENTS,
        {"toxicity": toxicity, "pep8": lambda sentence: 0.25},
        {"toxicity": 0.5, "pep8": 0},
        applies={"pep8": "python"},
        shard_rows=2,
        quarantined=[(1, "not-json")],
    )


def test_a_dataset_is_inspected_where_the_job_cannot_be_read(dataset):
    manifest = open_dataset(str(dataset)).manifest
    elsewhere = LabelledDataset("hdfs://host/made", manifest, pafs.LocalFileSystem(), str(dataset))
    assert inspect_dataset(elsewhere).unfinished == ()


def test_a_column_is_described(dataset):
    report = inspect_dataset(open_dataset(str(dataset)))
    toxicity, pep8 = report.columns
    assert (toxicity.sentences, toxicity.aligned, toxicity.share_aligned) == (7, 5, 5 / 7)
    assert (toxicity.documents_scored, toxicity.documents_null) == (4, 0)
    assert toxicity.mean == pytest.approx((0 + 0.02 + 0.9 + 0.5 + 0.5 + 0.95 + 0) / 7)
    assert toxicity.quantiles["50"] == 0.5
    assert toxicity.document_quantiles["100"] == pytest.approx(0.5)
    assert (pep8.documents_scored, pep8.documents_null, pep8.sentences, pep8.aligned) == (1, 3, 2, 0)


def test_the_histogram_holds_every_score_once_in_its_bin(dataset):
    report = inspect_dataset(open_dataset(str(dataset))).columns[0]
    scores = np.float32([0, 0.02, 0.9, 0.5, 0.5, 0.95, 0])
    assert sum(each.count for each in report.histogram) == len(scores)
    first, *rest = report.histogram
    assert (first.low, first.high, first.count) == (None, 0.0, 2)
    for each in rest:
        assert each.count == sum(each.low < score <= each.high for score in scores)


@settings(max_examples=15)
@given(
    st.lists(
        st.none() | st.lists(st.floats(0, 20, width=32), max_size=4).filter(lambda scores: len(scores) != 1),
        min_size=1,
        max_size=12,
    )
)
def test_quantiles_and_means_are_exact(tmp_path_factory, lists):
    texts = ["".join(f"S{index}. " for index in range(len(each or []))) for each in lists]
    # A document without sentences has an empty text; its scores are null or empty.
    folder = make_dataset(tmp_path_factory.mktemp("made") / "out", texts, {"toxicity": lists}, {"toxicity": 1})
    (report,) = inspect_dataset(open_dataset(str(folder))).columns
    scores = np.float32([score for each in lists for score in each or []])
    means = np.float32([np.mean(each, dtype=np.float64) for each in lists if each])
    assert report.documents_null == lists.count(None)
    if not len(scores):
        assert (report.quantiles, report.document_quantiles, report.histogram, report.mean) == ({}, {}, [], None)
        return
    for values, found in ((scores, report.quantiles), (means, report.document_quantiles)):
        ordered = np.sort(values)
        for percentile in PERCENTILES:
            rank = max(1, int(np.ceil(len(ordered) * float(percentile) / 100)))
            assert found[percentile] == ordered[rank - 1]
    assert report.aligned == int((scores <= 1).sum())


def test_examples_are_the_worst_and_those_closest_to_the_threshold(dataset):
    examples = find_examples(open_dataset(str(dataset)), "toxicity", 2)
    assert [each.text.strip() for each in examples["worst"]] == ["Worse.", "Bad!"]
    assert [each.text.strip() for each in examples["just misaligned"]] == ["Bad!", "Worse."]
    assert [each.text.strip() for each in examples["just aligned"]] == ["x = 1", "y = 2"]
    worst = examples["worst"][0]
    assert (worst.doc_id, worst.sentence, worst.score) == ("corpus.jsonl#4", 0, pytest.approx(0.95))


def test_no_example_occurs_twice(tmp_path):
    folder = make_dataset(tmp_path / "made", ["Same. Same. Other."] * 5, {"toxicity": lambda sentence: 0.5})
    examples = find_examples(open_dataset(str(folder)), "toxicity", 3)
    assert [each.text.strip() for each in examples["worst"]] == ["Same.", "Same.", "Other."][1:]
    assert examples["just misaligned"] == []


def test_the_command_shows_text_only_on_request(dataset):
    runner = CliRunner()
    result = runner.invoke(app, ["inspect", str(dataset)])
    assert result.exit_code == 0, result.output
    for part in ("toxicity", "pep8", "71.4%", "◂ threshold", "quarantined  1 (1 not-json)", "document means"):
        assert part in result.stdout
    assert "Worse" not in result.stdout
    assert "Worse" in runner.invoke(app, ["inspect", str(dataset), "--show-text"]).stdout


def test_the_json_contains_text_only_on_request(dataset):
    runner = CliRunner()
    plain = runner.invoke(app, ["inspect", str(dataset), "--json"])
    assert "Worse" not in plain.stdout
    facts = json.loads(plain.stdout)
    assert facts["documents"] == 4
    assert facts["ledger"]["quarantined"] == {"not-json": 1}
    assert [each["column"] for each in facts["columns"]] == ["toxicity", "pep8"]
    shown = json.loads(
        runner.invoke(
            app, ["inspect", str(dataset), "--json", "--show-text", "-c", "toxicity", "--examples", "1"]
        ).stdout
    )
    assert [each["column"] for each in shown["columns"]] == ["toxicity"]
    assert shown["examples"]["toxicity"]["worst"][0]["text"].strip() == "Worse."


def test_a_missing_column_is_refused(dataset):
    result = CliRunner().invoke(app, ["inspect", str(dataset), "--column", "pii"])
    assert result.exit_code == 2
    assert "has no score column 'pii'; it has: toxicity, pep8" in result.stderr


def test_a_dataset_without_sentences_is_shown(tmp_path):
    folder = make_dataset(tmp_path / "made", ["", ""], {"toxicity": lambda sentence: 1.0})
    result = CliRunner().invoke(app, ["inspect", str(folder), "--show-text"])
    assert result.exit_code == 0, result.output
    assert "2 (2 empty)" in result.stdout


def test_texts_are_not_interpreted_as_markup_or_control_characters(tmp_path):
    text = "[bold]not bold[/bold] \x1b[31mnot red\x1b[0m [link=file:///etc/passwd]x[/]."
    folder = make_dataset(tmp_path / "made", [text], {"toxicity": lambda sentence: 1.0})
    result = CliRunner().invoke(app, ["inspect", str(folder), "--show-text"])
    assert "[bold]not bold[/bold]" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_report_fits_a_terminal(dataset, capsys):
    show_report(Console(width=80, highlight=False), inspect_dataset(open_dataset(str(dataset))))
    assert all(len(line) <= 80 for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.12345, "0.123"), (1.0, "1"), (0.999988, "0.999988"), (2.5e-7, "2.5e-07"), (None, "–")],
)
def test_a_number_just_below_one_is_not_shown_as_one(value, shown):
    assert number(value) == shown


def test_a_long_sentence_is_shortened():
    assert shortened("a\n b\t" + "c" * 500) == "a b " + "c" * 155 + "…"


class TestQuarantined:
    @pytest.fixture
    def odd(self, tmp_path):
        left_out = [(number, f"reason-{number % 2}") for number in range(4, 154)]
        return make_dataset(
            tmp_path / "odd", ["Nice."], {"toxicity": toxicity}, {"toxicity": 0.5}, quarantined=left_out
        )

    def test_quarantined_records_are_listed(self, odd):
        done = CliRunner().invoke(app, ["inspect", str(odd), "--quarantined", "--limit", "3"])
        assert done.exit_code == 0
        rows = [line.split() for line in done.stdout.splitlines()]
        assert [(row[-2], row[-1]) for row in rows[1:4]] == [("4", "reason-0"), ("5", "reason-1"), ("6", "reason-0")]
        assert "and 147 more of 150; --limit 0 lists all." in done.stdout
        facts = json.loads(CliRunner().invoke(app, ["inspect", str(odd), "--quarantined", "--json"]).stdout)
        assert (facts["total"], len(facts["entries"])) == (150, 100)
        assert facts["reasons"] == {"reason-0": 75, "reason-1": 75}
        assert facts["entries"][0].keys() == {"source", "position", "reason", "detail"}
        every = CliRunner().invoke(app, ["inspect", str(odd), "--quarantined", "--json", "--limit", "0"])
        assert len(json.loads(every.stdout)["entries"]) == 150

    def test_foreign_names_are_escaped(self):
        found = Quarantine("labelled", [Entry("[red]a\x1b[31m\n.jsonl", 7, "bad", "[b]")], 1, {"bad": 1})
        console = Terminal(width=100, record=True, file=io.StringIO())
        show_quarantine(console, found)
        shown = console.file.getvalue()
        assert "[red]a\\x1b[31m" in shown
        assert "[b]" in shown
        assert "\x1b" not in shown

    def test_an_empty_quarantine_is_mentioned(self, tmp_path):
        made = make_dataset(tmp_path / "made", ["Nice."], {"toxicity": toxicity}, {"toxicity": 0.5})
        assert "Nothing is in quarantine" in CliRunner().invoke(app, ["inspect", str(made), "--quarantined"]).stdout
