"""`phf report`: the page, from the command."""

import json
import re

import pytest
from typer.testing import CliRunner

import phf
from tests.datasets import make_dataset

NOTES = "<p>my notes about phf report 1</p>"
WORDS = "peach mango lemon"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    texts = [f"{WORDS} {index}. " for index in range(60)]
    return make_dataset(
        tmp_path_factory.mktemp("report") / "it's labelled",
        texts,
        {"toxicity": [[index / 100] for index in range(60)], "pep8": [None] * 60},
        {"toxicity": 0.25, "pep8": 0.0},
        split=lambda text, kind: [text],
        metas=[{"site": "<b>a&b</b>" if index % 2 else "plain"} for index in range(60)],
    )


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(phf.app, ["report", *map(str, words)])


def test_writes_a_page_without_text_and_replaces_it(run, labelled, tmp_path):
    assert run(labelled, "--by", "site").exit_code == 0
    page = (tmp_path / "report.html").read_text()
    assert "43.3 %" in page  # 26 of 60 sentences are at or below 0.25
    assert "&lt;b&gt;a&amp;b&lt;/b&gt;" in page
    assert "<b>a&b" not in page
    assert "applies to none of 60 documents" in page
    assert not any(word in page for word in WORDS.split())
    assert re.search(r"http-equiv=\"Content-Security-Policy\" content=\"default-src &#39;none&#39;", page)
    assert not re.search(r'(src|href)="(?!#)', page)
    assert run(labelled, "--column", "toxicity").exit_code == 0
    assert "pep8" not in (tmp_path / "report.html").read_text()


def test_the_command_of_the_page_is_quoted_for_a_shell(run, labelled, tmp_path):
    run(labelled, "--column", "toxicity")
    data = re.search(r'id="data">(.*?)</script>', (tmp_path / "report.html").read_text())
    commands = json.loads(data[1])[0]["commands"]
    assert commands[0].startswith("phf retag '")
    assert """it'"'"'s labelled'""" in commands[0]
    assert commands[0].endswith(" --threshold toxicity=0")


def test_prints_the_figures_and_compares_with_labels(run, labelled, tmp_path):
    rows = [{"doc_id": f"corpus.jsonl#{index}", "sentence": 0, "misaligned": index >= 30} for index in range(0, 60, 3)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(labelled, "--labels", "toxicity=labels.jsonl", "--json", "-o", "new/page.html")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    column = next(each for each in facts["columns"] if each["column"] == "toxicity")
    at = column["thresholds"].index(0.25)
    assert column["all"]["sentences"][at] == 26
    assert column["calibration"]["area"]["value"] == 1.0
    assert column["calibration"]["recall"][at]["value"] == 1.0
    assert column["calibration"]["precision"][at]["value"] == pytest.approx(10 / 11)
    assert "Against labels by people" in (tmp_path / "new/page.html").read_text()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--labels", "toxicity"], "write COLUMN=FILE"),
        (["--labels", "taste=labels.jsonl"], "the report shows no column 'taste'"),
        (["--column", "taste"], "has no score column 'taste'"),
        (["--by", "author"], "no document of"),
        (["-o", "notes.html"], "is not a report of phf"),
        (["-o", "link.html"], "is a link"),
        (["-o", "rep"], "--output rep is a page: give it a name that ends in .html"),
        (["-o", "folder"], "Cannot write --output folder"),
    ],
)
def test_wrong_usage_is_refused_and_nothing_is_replaced(run, labelled, tmp_path, words, problem):
    (tmp_path / "notes.html").write_text(NOTES)
    (tmp_path / "link.html").symlink_to(tmp_path / "notes.html")
    (tmp_path / "folder").mkdir()
    result = run(labelled, *words)
    assert result.exit_code == 2
    assert problem in " ".join(result.stderr.split())
    assert (tmp_path / "notes.html").read_text() == NOTES
    assert not (tmp_path / "report.html").exists()
