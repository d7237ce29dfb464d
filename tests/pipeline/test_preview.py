import json

import pytest
from typer.testing import CliRunner

from phf import app


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.py").write_text("x=1\ny = 2\n")
    records = [{"id": f"r{n}", "text": f"Record {n}. [bold]More[/bold]."} for n in range(3)]
    lines = [json.dumps(record) for record in records]
    lines.insert(1, "no json")
    (folder / "b.jsonl").write_text("\n".join([*lines, '{"text": ""}']) + "\n")
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ["preview", *map(str, arguments)])


def facts_of(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_records_get_their_scores_and_tags(corpus):
    facts = facts_of(corpus, "--scorer", "pep8", "--threshold", "pep8=0", "--limit", 10)
    code, *prose = facts["documents"]
    assert (code["kind"], code["sentences"]) == ("python", ["x=1\n", "y = 2\n"])
    assert code["columns"]["pep8"]["aligned"] == [False, True]
    assert code["columns"]["pep8"]["scores"][0] > 0
    assert [each["doc_id"] for each in prose[:3]] == ["r0", "r1", "r2"]
    assert [each["columns"]["pep8"] for each in prose] == [None] * 4
    assert [each["reason"] for each in facts["quarantined"]] == ["not-json"]


def test_only_the_first_records_are_read(corpus):
    facts = facts_of(corpus, "--scorer", "pep8", "--limit", 2)
    assert [each["source"] for each in facts["documents"]] == [str(corpus / "a.py"), str(corpus / "b.jsonl")]


def test_a_percentile_is_said_to_be_over_these_sentences(corpus):
    result = run(corpus, "--scorer", "pep8", "--limit", 1)
    assert result.exit_code == 0, result.output
    assert "p50 of the sentences above" in " ".join(result.stdout.split())
    assert "✗" in result.stdout
    assert "x=1" in result.stdout


def test_nothing_is_written_and_no_text_is_taken_for_markup(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = run(corpus, "--scorer", "pep8", "--sentences", 1, "--limit", 9)
    assert result.exit_code == 0, result.output
    assert "… and 1 more sentences" in result.stdout
    assert "quarantined: not-json" in " ".join(result.stdout.split())
    assert "(empty)" in result.stdout
    assert sorted(tmp_path.rglob("*")) == before
    assert "bold]More[/bold]" in run(corpus, "--scorer", "pep8").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jsonl", "--scorer", "pep8"], "There is no input missing.jsonl"),
        (["{corpus}"], "No scorer is given"),
        (["{corpus}", "--scorer", "nonsense"], "'nonsense'"),
        (["{corpus}", "--scorer", "pep8", "--threshold", "pii=0"], "threshold for 'pii'"),
        (["{corpus}", "--scorer", "pep8", "--text-field", "body"], "No record has the field 'body'"),
    ],
)
def test_bad_input_is_refused_with_one_message(corpus, arguments, message):
    result = run(*(each.format(corpus=corpus) for each in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
