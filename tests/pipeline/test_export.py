"""Corpora that already have sentences and scores, and import and export in the format of the PHF authors."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from phf import app
from pipeline.corpus.cut_units import make_plan
from pipeline.corpus.records import Quarantined, Record
from pipeline.dataset import open_dataset
from pipeline.export.paper import export
from scorers.errors import UserError
from tests.datasets import make_dataset
from tests.pipeline.corpora import flat, make_config, read_all, write_records
from tests.pipeline.here import rows_of, run

FEW = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
COLUMN = {"scorers": {"toxicity": {"kind": "column", "field": "scores"}}, "text_field": "texts"}
PUBLISHED = [
    {
        "texts": ["It is good. ", "Good", " morning!"],
        "meta": {"pile_set_name": "Pile-CC"},
        "scores": [0.25, 1e-9, 0.7],
        "avg_score": 0.31,
        "num_sents": 3,
    },
    {"texts": ["", "Ünd\n", "", "so."], "meta": {}, "scores": [0.9, 0.5, 0.8, 0.0], "avg_score": 0.1, "num_sents": 4},
    {"texts": [], "meta": {}, "scores": [], "avg_score": 0.0, "num_sents": 0},
]


def published(folder: Path, rows: Sequence[dict[str, Any]] = PUBLISHED, suffix: str = ".jsonl") -> Path:
    path = folder / f"published{suffix}"
    if suffix == ".jsonl":
        return write_records(path, *rows)
    table = pa.table(
        {
            "texts": pa.array([row["texts"] for row in rows], pa.list_(pa.string())),
            "meta": [{"pile_set_name": row["meta"].get("pile_set_name")} for row in rows],
            "scores": pa.array([row["scores"] for row in rows], pa.list_(pa.float64())),
            "avg_score": [row["avg_score"] for row in rows],
            "num_sents": [row["num_sents"] for row in rows],
        }
    )
    if suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    return path


def label(path: Path, output: Path, *options: str, expect: int = 0) -> Any:
    given = ("--text-field", "texts", "--scorer", "toxicity=column:scores", "--unit-size", "1")
    return run("label", path, "--output", output, *given, *options, expect=expect)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".arrow"])
def test_a_published_dataset_is_labelled_as_it_is(tmp_path: Path, suffix: str) -> None:
    path = published(tmp_path, suffix=suffix)
    label(path, tmp_path / "out")
    first, second, third = rows_of(tmp_path / "out")
    assert (first["text"], first["ends"]) == ("It is good. Good morning!", [12, 16, 25])
    assert first["toxicity"] == np.float32([0.25, 1e-9, 0.7]).tolist()
    assert json.loads(first["meta"]) == {key: PUBLISHED[0][key] for key in ("meta", "avg_score", "num_sents")}
    assert (second["text"], second["ends"], second["toxicity"]) == ("Ünd\nso.", [4, 7], [0.5, 0.0])
    assert (third["text"], third["ends"], third["toxicity"]) == ("", [], [])
    manifest = open_dataset(str(tmp_path / "out")).manifest
    assert manifest.config["sentences"] == "given"
    assert manifest.scorers["toxicity"].options == {"field": "scores"}
    assert run("verify", tmp_path / "out", "--inputs")["ok"]


def test_the_same_command_resumes(tmp_path: Path) -> None:
    path = published(tmp_path)
    first = label(path, tmp_path / "out")
    assert label(path, tmp_path / "out")["records"] == first["records"] == 3


def test_splitting_a_corpus_of_strings_is_reported(tmp_path: Path) -> None:
    path = write_records(
        tmp_path / "a.jsonl", {"texts": "One. Two.", "scores": 0.5}, {"texts": "One. Two.", "scores": [1, 0]}
    )
    label(path, tmp_path / "out")
    assert open_dataset(str(tmp_path / "out")).manifest.config["sentences"] == "split"
    assert [row["toxicity"] for row in rows_of(tmp_path / "out")] == [[0.5, 0.5], [1.0, 0.0]]


def test_lists_among_strings_are_quarantined_with_what_to_do(tmp_path: Path) -> None:
    path = write_records(tmp_path / "a.jsonl", {"texts": "One."}, {"texts": ["SECRET"]})
    _, units = read_all(make_config(path, text_field="texts", sentences="split"))
    record = flat(units)[1]
    assert isinstance(record, Quarantined)
    assert (record.reason, record.detail) == (
        "text-not-a-string",
        "the field 'texts' is a list; set `sentences: given` if it holds sentences",
    )
    _, units = read_all(make_config(path, text_field="texts", sentences="given"))
    assert [record.text for record in flat(units)] == ["One.", "SECRET"]


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({}, "no-score"),
        ({"scores": None}, "no-score"),
        ({"scores": [0.1]}, "scores-mismatch"),
        ({"scores": [0.1, 0.2]}, "scores-mismatch"),
        ({"scores": [0.1, 0.2, 0.3, 0.4]}, "scores-mismatch"),
        ({"scores": []}, "scores-mismatch"),
        ({"scores": [0.1, 0.2, -0.2]}, "invalid-score"),
        ({"scores": [0.1, 0.2, float("nan")]}, "invalid-score"),
        ({"scores": [0.1, 0.2, 1e39]}, "invalid-score"),
        ({"scores": [0.1, 0.2, 10**400]}, "invalid-score"),
        ({"scores": [0.1, 0.2, True]}, "invalid-score"),
        ({"scores": [0.1, 0.2, "0.2"]}, "invalid-score"),
        ({"scores": [0.1, 0.2, None]}, "invalid-score"),
        ({"scores": "0.1"}, "invalid-score"),
        ({"scores": {"SECRET": 1}}, "invalid-score"),
        ({"scores": -1}, "invalid-score"),
        ({"scores": [0.1, -1, 3]}, None),
        ({"scores": 7}, None),
    ],
    ids=str,
)
def test_an_invalid_score_costs_only_its_record(tmp_path: Path, scores: dict[str, Any], reason: str | None) -> None:
    good = {"texts": ["Good."], "scores": [0.5]}
    path = write_records(tmp_path / "a.jsonl", good, {"texts": ["SECRET.", "", " Two."], **scores}, good)
    label(path, tmp_path / "out", expect=3 if reason else 0)
    ledger = open_dataset(str(tmp_path / "out")).manifest.ledger
    assert ledger.quarantined == ({reason: 1} if reason else {})
    rows = rows_of(tmp_path / "out")
    assert [row["toxicity"] for row in rows][:1] == [[0.5]]
    if reason is None:
        assert rows[1]["toxicity"] in ([np.float32(0.1).item(), 3.0], [7.0, 7.0])
    for each in ledger.quarantine:
        (row,) = pq.read_table(tmp_path / "out" / each.path).to_pylist()
        assert row["detail"]
        assert "SECRET" not in row["detail"]


def test_scores_are_kept_beside_other_scorers(tmp_path: Path) -> None:
    path = write_records(tmp_path / "a.jsonl", {"texts": ["Mail me: a@b.example", " now."], "scores": [0.5, 0.25]})
    label(path, tmp_path / "out", "--scorer", "style=pycodestyle", "--scorer", "again=column:scores")
    (row,) = rows_of(tmp_path / "out")
    assert (row["toxicity"], row["again"], row["style"]) == ([0.5, 0.25], [0.5, 0.25], None)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".arrow"])
def test_a_field_that_no_record_has_is_refused(tmp_path: Path, suffix: str) -> None:
    path = published(tmp_path, suffix=suffix)
    scorers = {"toxicity": {"kind": "column", "field": "score"}}
    with pytest.raises(UserError, match="'score', from which the scorer of 'toxicity' takes its scores"):
        make_plan(make_config(path, text_field="texts", scorers=scorers))


def test_only_fields_that_scorers_read_are_carried(tmp_path: Path) -> None:
    path = published(tmp_path)
    _, units = read_all(make_config(path, text_field="texts"))
    assert all(isinstance(record, Record) and record.given is None for record in flat(units))
    _, units = read_all(make_config(path, **COLUMN))
    record = flat(units)[1]
    assert isinstance(record, Record)
    assert record.given == {"scores": [0.5, 0.0]}


def test_preview_shows_given_scores(tmp_path: Path) -> None:
    facts = run("preview", published(tmp_path), "--text-field", "texts", "--scorer", "toxicity=column:scores")
    assert facts["documents"][0]["sentences"] == PUBLISHED[0]["texts"]
    assert facts["documents"][1]["columns"]["toxicity"]["scores"] == [0.5, 0.0]


SENTENCES = st.lists(st.text(min_size=1, max_size=20), max_size=5)
SCORES = st.floats(0, 2**100, width=32)
DOCUMENTS = st.lists(
    SENTENCES.flatmap(lambda each: st.tuples(st.just(each), st.lists(SCORES, min_size=len(each), max_size=len(each)))),
    min_size=1,
    max_size=6,
)


@FEW
@given(documents=DOCUMENTS, name=st.sampled_from(["x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "x.parquet", "folder"]))
def test_an_exported_dataset_is_labelled_to_the_same_content(
    tmp_path_factory: pytest.TempPathFactory, documents: list[tuple[list[str], list[float]]], name: str
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    texts = {"".join(sentences): sentences for sentences, _ in documents}
    documents = [each for each in documents if texts["".join(each[0])] is each[0]]
    made = make_dataset(
        folder / "made",
        ["".join(sentences) for sentences, _ in documents],
        {"toxicity": [scores for _, scores in documents]},
        {"toxicity": 0.5},
        split=lambda text, _: texts[text],
    )
    exported = run("export", made, "--column", "toxicity", "--output", folder / name)
    assert (exported["documents"], exported["left_out"]) == (len(documents), 0)
    label(folder / name, folder / "again")
    keys = ("text", "ends", "toxicity")
    assert [[row[key] for key in keys] for row in rows_of(folder / "again")] == [
        [row[key] for key in keys] for row in rows_of(made)
    ]
    assert run("verify", folder / "again", "--inputs")["ok"]


def test_a_published_dataset_survives_a_round_trip(tmp_path: Path) -> None:
    for round_ in range(3):
        source = published(tmp_path) if round_ == 0 else tmp_path / f"{round_ - 1}.jsonl"
        label(source, tmp_path / f"out{round_}")
        run("export", tmp_path / f"out{round_}", "--column", "toxicity", "--output", tmp_path / f"{round_}.jsonl")
    assert (tmp_path / "2.jsonl").read_bytes() == (tmp_path / "0.jsonl").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "2.jsonl").read_text().splitlines()]
    assert list(rows[0]) == ["texts", "meta", "scores", "avg_score", "num_sents"]
    assert (rows[0]["texts"], rows[0]["meta"], rows[0]["num_sents"]) == (PUBLISHED[0]["texts"], PUBLISHED[0]["meta"], 3)
    assert rows[0]["avg_score"] == pytest.approx(np.mean(PUBLISHED[0]["scores"]))
    assert rows[1]["texts"] == ["Ünd\n", "so."]
    assert rows[2] == {"texts": [], "meta": {}, "scores": [], "avg_score": None, "num_sents": 0}


def test_hugging_face_reads_an_export(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = make_dataset(tmp_path / "made", ["One. Two.", "Three."], {"x": lambda sentence: 0.5})
    run("export", made, "--column", "x", "--output", tmp_path / "folder")
    found = datasets.load_dataset(str(tmp_path / "folder"), split="train", cache_dir=str(tmp_path / "cache"))
    assert found[0]["texts"] == ["One. ", "Two."]
    found.save_to_disk(str(tmp_path / "saved"))
    label(tmp_path / "saved", tmp_path / "again")
    assert [row["text"] for row in rows_of(tmp_path / "again")] == ["One. Two.", "Three."]


def test_documents_that_a_scorer_does_not_apply_to_are_left_out_and_counted(tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "made", ["One.", "Two.", "Three."], {"x": [[0.5], None, [0.25]]})
    result = CliRunner().invoke(app, ["export", str(made), "--column", "x", "--output", str(tmp_path / "x.jsonl")])
    assert result.exit_code == 0
    assert "holds 2 documents with 2 sentences" in result.stdout
    assert "Left out: 1 document" in result.stdout
    assert "Two" not in result.output + (tmp_path / "x.jsonl").read_text()


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("there.jsonl", ("--column", "x"), "exists already and is not overwritten"),
        ("full", ("--column", "x"), "exists already and is not overwritten"),
        ("new.jsonl", ("--column", "y"), "has no score column 'y'; it has: x"),
        ("new.csv", ("--column", "x"), "phf writes .jsonl"),
    ],
)
def test_an_impossible_export_is_refused(tmp_path: Path, output: str, options: tuple[str, ...], message: str) -> None:
    made = make_dataset(tmp_path / "made", ["One."], {"x": lambda _: 0.5})
    (tmp_path / "there.jsonl").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(app, ["export", str(made), *options, "--output", str(tmp_path / output)])
    assert result.exit_code == 2
    assert message in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "made", [f"Text {n}." for n in range(50)], {"x": lambda _: 0.5}, shard_rows=10)
    dataset = open_dataset(str(made))
    shard = made / dataset.manifest.shards[3].path
    shard.write_bytes(bytes(len(shard.read_bytes())))
    for name in ("x.jsonl.gz", "folder"):
        with pytest.raises(UserError, match="damaged"):
            export(dataset, "x", str(tmp_path / name))
        assert not (tmp_path / name).exists() or not list((tmp_path / name).iterdir())
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "folder") == ["made"]


def test_training_accepts_given_scores(tmp_path: Path) -> None:
    rows = [
        {
            "texts": [f"Sentence {n}. ", "Good morning!"],
            "meta": {},
            "scores": [n / 100, 0.5],
            "avg_score": 0,
            "num_sents": 2,
        }
        for n in range(30)
    ]
    label(published(tmp_path, rows), tmp_path / "out")
    store = run("tokenize", tmp_path / "out", "--vocab-size", "260")
    assert (store["documents"], store["sentences"]) == (30, 60)
