"""Labelling a unit always gives the same bytes; a record that cannot be scored is lost alone."""

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.cut_units import make_plan
from pipeline.corpus.readers import read_sources
from pipeline.corpus.records import Quarantined, Record
from pipeline.dataset.schema import unit_schema
from pipeline.labelling.resolve import ResolvedJob
from pipeline.labelling.workers.label_records import label_records
from pipeline.labelling.workers.scoring import ScorerFailedError
from pipeline.labelling.workers.worker import PartResult, UnitLabeller
from scorers import registry
from scorers.registry import ScorerSpec
from scorers.sentences import document
from tests.pipeline.corpora import make_config, write_records
from tests.pipeline.toy_scorers import ToyScorer


def records_of(*texts: str) -> list[Record]:
    return [Record("a.jsonl", index, f"a#{index}", text, "{}", "prose", "") for index, text in enumerate(texts)]


def test_records_get_a_score_per_sentence() -> None:
    labelled = label_records(records_of("One. Two!", "", "SKIP this."), {"a": ToyScorer("a"), "b": ToyScorer("b")})
    assert labelled.quarantined == []
    assert [each.record.position for each in labelled.scored] == [0, 1, 2]
    first, empty, skipped = labelled.scored
    assert first.document.sentences() == ["One. ", "Two!"]
    np.testing.assert_array_equal(first.scores["a"], np.float32([5 / 9, 4 / 9]))
    assert empty.scores["b"] is not None
    assert (empty.scores["b"].dtype, empty.scores["b"].shape) == (np.float32, (0,))
    assert skipped.scores == {"a": None, "b": None}
    assert labelled.seconds.keys() == {"read", "split", "a", "b"}


def test_quarantine_is_in_order_with_one_reason_per_record() -> None:
    records: list[Record | Quarantined] = [*records_of("REFUSE it.", "Good.", "ASK it.", "POISON it.")]
    records.insert(1, Quarantined("a.jsonl", 9, "not-json", "x"))
    labelled = label_records(records, {"a": ToyScorer("a"), "b": ToyScorer("b")})
    assert [each.record.text for each in labelled.scored] == ["Good."]
    assert labelled.quarantined == [
        Quarantined("a.jsonl", 0, "deadline", "a: took longer than 1 s"),
        Quarantined("a.jsonl", 9, "not-json", "x"),
        Quarantined("a.jsonl", 2, "scorer-error", labelled.quarantined[2].detail),
        Quarantined("a.jsonl", 3, "scorer-error", labelled.quarantined[3].detail),
    ]
    assert "a: TypeError" in labelled.quarantined[2].detail
    assert "a: ValueError" in labelled.quarantined[3].detail
    assert not any("it." in each.detail for each in labelled.quarantined)


def test_the_text_is_kept_only_on_request() -> None:
    labelled = label_records(records_of("POISON it."), {"a": ToyScorer("a")}, keep_text=True)
    assert [each.text for each in labelled.quarantined] == ["POISON it."]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ResolvedJob:
    monkeypatch.setitem(registry.KINDS, "toy", f"{ToyScorer.__module__}:ToyScorer")
    texts = ["One. Two.", "", "SKIP.", "POISON.", "Grüße! \0", "REFUSE."]
    (tmp_path / "corpus").mkdir()
    write_records(tmp_path / "corpus" / "a.jsonl", *({"text": text, "n": 1} for text in texts), ["no object"])
    (tmp_path / "corpus" / "b.py").write_text("x = 1\ny = 2\n")
    specs = {"toxicity": ScorerSpec(kind="toy"), "pii": ScorerSpec(kind="toy", scale=2.0)}
    config = make_config(
        tmp_path / "corpus",
        output=str(tmp_path / "labelled"),
        scorers=specs,
        unit_size=1_000_000,
        execution={
            "pools": {"pii": "cuda:0"},
            "threads": 2,
            "batch_tokens": 99,
            "precision": "auto",
            "compile": True,
            "deadline_s": 3.0,
            "deadlines": {"pii": 7},
        },
    )
    return ResolvedJob(config, make_plan(config), {"cpu": ["toxicity"], "pii": ["pii"]}, {})


def label(job: ResolvedJob, group: str, staged: str) -> tuple[PartResult, pq.ParquetFile]:
    labeller = UnitLabeller(pickle.loads(pickle.dumps(job)), group)
    (unit,) = job.plan.units
    result = labeller.label(unit, staged)
    content = (Path(job.config.output) / staged).read_bytes()
    assert (result.size, result.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert result.records == result.rows + len(result.quarantined)
    return pickle.loads(pickle.dumps(result)), pq.ParquetFile(
        Path(job.config.output) / staged, page_checksum_verification=True
    )


def test_the_base_part_holds_the_rows(job: ResolvedJob) -> None:
    result, part = label(job, "cpu", "staging/1/0.parquet")
    assert part.schema_arrow == unit_schema(["toxicity"])
    rows = part.read().to_pylist()
    records = {(each.source, each.position): each for each in read_sources(job.plan.sources, job.config)}
    for row in rows:
        record = records[row["source"], row["position"]]
        assert isinstance(record, Record)
        assert (row["doc_id"], row["text"], row["meta"]) == (record.doc_id, record.text, record.meta)
        assert row["ends"] == document(record.text, record.kind).ends.tolist()
        assert (row["toxicity"] is None) == ("SKIP" in record.text)
        assert row["toxicity"] is None or len(row["toxicity"]) == len(row["ends"])
    assert [row["text"] for row in rows] == ["One. Two.", "", "SKIP.", "Grüße! \0", "x = 1\ny = 2\n"]
    assert (result.unit, result.group, result.staged) == (0, "cpu", "staging/1/0.parquet")
    assert (result.rows, result.records, result.empty) == (5, 8, 1)
    assert result.sentences == sum(len(row["ends"]) for row in rows)
    assert result.bytes_text == sum(len(row["text"].encode()) for row in rows)
    assert [each.reason for each in result.quarantined] == ["scorer-error", "deadline", "not-an-object"]
    assert result.seconds.keys() == {"read", "split", "toxicity", "write"}


def test_another_groups_part_holds_keys_and_scores(job: ResolvedJob) -> None:
    _, base = label(job, "cpu", "staging/1/0.parquet")
    result, part = label(job, "pii", "staging/1/1.parquet")
    assert part.schema_arrow.names == ["source", "position", "pii"]
    keys = ["source", "position"]
    assert part.read(keys).to_pylist() == base.read(keys).to_pylist()
    assert (result.rows, result.group) == (5, "pii")


def test_the_same_unit_has_the_same_bytes(job: ResolvedJob) -> None:
    assert label(job, "cpu", "staging/1/0.parquet")[0].sha256 == label(job, "cpu", "staging/2/0.parquet")[0].sha256


def test_a_unit_without_rows_is_an_empty_part(job: ResolvedJob) -> None:
    labeller = UnitLabeller(job, "cpu")
    labeller.scorers["toxicity"].applies = lambda document: 1 / 0  # type: ignore[method-assign]
    result = labeller.label(job.plan.units[0], "staging/1/0.parquet")
    assert (result.rows, result.records, len(result.quarantined)) == (0, 8, 8)
    assert pq.read_table(Path(job.config.output) / "staging/1/0.parquet").schema == unit_schema(["toxicity"])


def test_scorers_get_the_execution_options_of_their_column(job: ResolvedJob) -> None:
    toxicity = UnitLabeller(job, "cpu").scorers["toxicity"]
    pii = UnitLabeller(job, "pii").scorers["pii"]
    assert isinstance(toxicity, ToyScorer)
    assert isinstance(pii, ToyScorer)
    assert toxicity.execution is not None
    assert pii.execution is not None
    assert toxicity.execution.model_dump() == {
        "device": "cpu",
        "threads": 2,
        "batch_tokens": 99,
        "precision": "auto",
        "compile": True,
        "deadline_s": 3.0,
        "trusted_sha256": frozenset(),
    }
    assert (pii.execution.device, pii.execution.deadline_s) == ("cuda:0", 7.0)
    assert UnitLabeller(job, "pii").fingerprints == {"pii": "toy-2.0"}


def test_failed_staging_leaves_nothing_behind(job: ResolvedJob) -> None:
    labeller = UnitLabeller(job, "cpu")
    labeller.scorers["toxicity"].broken = True  # type: ignore[attr-defined]
    with pytest.raises(ScorerFailedError):
        labeller.label(job.plan.units[0], "staging/1/0.parquet")
    assert not list(Path(job.config.output).rglob("*.parquet"))


def test_relative_inputs_refer_to_the_drivers_folder(
    job: ResolvedJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = job.config.model_copy(update={"inputs": ["corpus"]})
    relative = ResolvedJob(config, make_plan(config), job.groups, {})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result, part = label(relative, "cpu", "staging/1/0.parquet")
    assert result.rows == 5
    assert set(part.read(["source"]).column(0).to_pylist()) == {"corpus/a.jsonl", "corpus/b.py"}


@pytest.mark.parametrize("policy", ["split", "quarantine"])
def test_large_documents_follow_the_jobs_policy(job: ResolvedJob, policy: str) -> None:
    config = job.config.model_copy(update={"max_document_size": 6, "large_documents": policy})
    result, part = label(replace(job, config=config), "cpu", "staging/1/0.parquet")
    large = [each.reason for each in result.quarantined].count("too-large-document")
    texts = part.read(["text"]).column(0).to_pylist()
    # "One. Two.", "POISON.", "Grüße! \0", "REFUSE." and the Python file have more than six bytes.
    assert (large, "One. Two." in texts, len(texts)) == ((1, True, 4) if policy == "split" else (5, False, 2))
