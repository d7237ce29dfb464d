"""Scorers that do not speak every language: null where they do not, in every command that scores."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pipeline.here import rows_of, run
from tests.pipeline.label_job import data_hashes

ENGLISH = "toxicity=linear,languages=en"
RECORDS = [
    {"id": "a", "text": "You idiot. A fine day.", "language": "en-GB"},
    {"id": "b", "text": "Du Idiot. Guter Tag.", "language": "de"},
    {"id": "c", "text": "A locale. Two.", "language": "en_US.UTF-8"},
    {"id": "d", "text": "", "language": "de"},
]


def write(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(f"{json.dumps(each)}\n" for each in records))
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write(tmp_path / "corpus.jsonl", RECORDS)


def scored(dataset: Path, column: str = "toxicity") -> dict[str, bool]:
    """By document: whether it has scores, and tags with them."""
    found = {}
    for row in rows_of(dataset):
        assert (row[column] is None) == (row[f"{column}_aligned"] is None)
        found[row["doc_id"]] = row[column] is not None
    return found


def test_a_column_is_null_where_its_scorer_does_not_speak_the_language(corpus: Path, tmp_path: Path) -> None:
    gated, all_of_it = tmp_path / "gated", tmp_path / "all"
    run("label", corpus, "--output", gated, "--scorer", ENGLISH, "--scorer", "other=linear")
    run("label", corpus, "--output", all_of_it, "--scorer", "toxicity=linear")
    assert scored(gated) == {"a": True, "b": False, "c": True, "d": False}
    assert all(scored(gated, "other").values())
    full = {row["doc_id"]: row["toxicity"] for row in rows_of(all_of_it)}
    for row in rows_of(gated):
        assert row["toxicity"] in (None, full[row["doc_id"]])
        # The language stays where later commands find it.
        assert "language" in json.loads(row["meta"])
    run("verify", gated)


def test_a_column_added_later_is_the_same(corpus: Path, tmp_path: Path) -> None:
    at_once, later = tmp_path / "at_once", tmp_path / "later"
    run("label", corpus, "--output", at_once, "--scorer", "other=linear", "--scorer", ENGLISH)
    run("label", corpus, "--output", later, "--scorer", "other=linear")
    run("score", later, "--scorer", ENGLISH)
    run("verify", later)
    assert rows_of(later) == rows_of(at_once)


def test_a_damaged_unit_is_repaired_to_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run("label", corpus, "--output", output, "--scorer", ENGLISH)
    before = data_hashes(output)
    for path in [*output.glob("data/**/*.parquet"), *output.glob("units/**/*.parquet")]:
        path.write_bytes(path.read_bytes()[:-7])
    run("repair", output)
    assert data_hashes(output) == before
    assert scored(output) == {"a": True, "b": False, "c": True, "d": False}


def test_other_languages_are_another_job(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run("label", corpus, "--output", output, "--scorer", ENGLISH)
    message = run("label", corpus, "--output", output, "--scorer", "toxicity=linear,languages=en+de", expect=2)
    assert "scorers.toxicity.languages" in message


@pytest.mark.parametrize("tag", [None, "", 7, ["en"], "English (US)", "en fr"])
def test_a_record_without_a_language_is_quarantined(tmp_path: Path, tag: object) -> None:
    corpus = write(tmp_path / "corpus.jsonl", [*RECORDS, {"id": "e", "text": "SECRET words.", "language": tag}])
    output = tmp_path / "out"
    run("label", corpus, "--output", output, "--scorer", ENGLISH, expect=3)
    (quarantined,) = pq.read_table(next(output.glob("ledger/*/quarantine-*.parquet"))).to_pylist()
    assert quarantined["reason"] == "no-language"
    assert "'language'" in quarantined["detail"]
    assert "SECRET" not in str(quarantined)
    assert "e" not in scored(output)


def test_parquet_and_another_field(tmp_path: Path) -> None:
    rows = [{"text": each["text"], "lang": each["language"]} for each in RECORDS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "corpus.parquet")
    run(
        "label", tmp_path / "corpus.parquet", "--output", tmp_path / "out", "--scorer", f"{ENGLISH},language_field=lang"
    )
    assert [*scored(tmp_path / "out").values()] == [True, False, True, False]


def test_a_preview_shows_what_a_job_would_store(corpus: Path) -> None:
    shown = run("preview", corpus, "--scorer", ENGLISH)
    scores = [each["columns"]["toxicity"] for each in shown["documents"]]
    assert [each is None or each["scores"] is None for each in scores] == [False, True, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--scorer", f"{ENGLISH},language_field=lang"), "No record has the field 'lang'"),
        (("--scorer", ENGLISH, "--set", "meta_fields=[id2]"), "must be kept in the dataset"),
        (("--scorer", f"{ENGLISH},language_field=text"), "must be kept in the dataset"),
        (("--scorer", "toxicity=linear,languages=english language"), "languages"),
        (("--scorer", "toxicity=linear,language_field=lang"), "no languages are given"),
    ],
)
def test_languages_that_cannot_be_read_are_refused(
    corpus: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    error = run("label", corpus, "--output", tmp_path / "out", *arguments, expect=2)
    assert message in " ".join(error.split())
    assert not (tmp_path / "out").exists()


def test_files_without_fields_are_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("One. Two.")
    error = run("label", tmp_path / "corpus", "--output", tmp_path / "out", "--scorer", ENGLISH, expect=2)
    assert "have no fields" in error
