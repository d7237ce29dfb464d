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


def test_lists_of_sentences_are_taken_as_label_takes_them(tmp_path):
    texts = ["One. Two.", ["One. Two.", " Three."]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = (tmp_path / "a.jsonl", "--scorer", "toxicity=linear", "--threshold", "toxicity=p50")
    facts = facts_of(*options)
    assert [each["reason"] for each in facts["quarantined"]] == ["text-not-a-string"]
    assert len(facts["documents"]) == 1
    given = facts_of(*options, "--set", "sentences=given")
    assert [each["sentences"] for each in given["documents"]] == [["One. ", "Two."], texts[1]]


def test_only_the_first_records_are_read(corpus):
    facts = facts_of(corpus, "--scorer", "pep8", "--limit", 2)
    assert [each["source"] for each in facts["documents"]] == [str(corpus / "a.py"), str(corpus / "b.jsonl")]


def test_a_percentile_is_marked_as_over_these_sentences(corpus):
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


TEXT = "Hello there. Write to jo@example.com, or call +1 201-555-0123! Bye."


@pytest.fixture
def letters(tmp_path):
    path = tmp_path / "letters.jsonl"
    path.write_text(json.dumps({"id": "r0", "text": TEXT}) + "\n")
    return path


def test_findings_are_replaced_by_their_type_and_listed_with_their_position(letters):
    scorer = ["--scorer", "pii=scrubadub,entities=none"]
    (document,) = facts_of(letters, *scorer, "--redact")["documents"]
    assert "".join(document["sentences"]) == "Hello there. Write to {{EMAIL}}, or call {{PHONE}}! Bye."
    found = document["findings"]
    assert [(each["column"], each["type"], each["sentence"]) for each in found] == [
        ("pii", "email", 1),
        ("pii", "phone", 1),
    ]
    assert [TEXT[each["text_start"] : each["text_end"]] for each in found] == ["jo@example.com", "+1 201-555-0123"]
    assert [each["text_start"] - each["start"] for each in found] == [len("Hello there. ")] * 2
    result = run(letters, *scorer, "--redact")
    assert result.exit_code == 0, result.output
    assert "{{EMAIL}}" in result.stdout
    assert "jo@" not in result.stdout
    assert "jo@example.com" in run(letters, *scorer).stdout


def test_text_that_no_scorer_has_searched_is_not_shown(letters):
    scorers = ["--scorer", "pii=scrubadub,entities=none,documents=python", "--scorer", "pep8"]
    (document,) = facts_of(letters, *scorers, "--redact")["documents"]
    assert not any(word in sentence for sentence in document["sentences"] for word in ("Hello", "jo", "Bye"))
    assert document["findings"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jsonl", "--scorer", "pep8"], "There is no input missing.jsonl"),
        (["{corpus}"], "No scorer is given"),
        (["{corpus}", "--scorer", "nonsense"], "'nonsense'"),
        (["{corpus}", "--scorer", "pep8", "--redact"], "--redact needs a scorer that finds something to hide"),
        (["{corpus}", "--scorer", "pep8", "--threshold", "pii=0"], "threshold for 'pii'"),
        (["{corpus}", "--scorer", "pep8", "--text-field", "body"], "No record has the field 'body'"),
    ],
)
def test_bad_input_is_refused_with_one_message(corpus, arguments, message):
    result = run(*(each.format(corpus=corpus) for each in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
