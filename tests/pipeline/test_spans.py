"""Spans: where scorers found something, from the labelling job to what reads the dataset."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.checking.verify import verify
from pipeline.config import LabelExecution, ScoreConfig
from pipeline.corpus.records import Record
from pipeline.dataset import open_dataset
from pipeline.dataset.derived import dataset_identity
from pipeline.dataset.manifest import DamagedError, Manifest, parse_manifest
from pipeline.dataset.packing import row_sizes
from pipeline.dataset.schema import dataset_schema, spans_column, unit_schema
from pipeline.dataset.spans import spans_of
from pipeline.export.paper import export
from pipeline.labelling.monitoring.console import PlainReporter
from pipeline.labelling.score import run_score
from pipeline.labelling.workers.label_records import label_records
from pipeline.labelling.workers.scoring import Locating
from pipeline.reporting.found_types import FoundType, count_types
from pipeline.storage import failpoints
from pipeline.upkeep.purge import Request, purge
from pipeline.upkeep.repair import repair
from scorers.errors import IncompleteError
from scorers.registry import ScorerSpec, build
from scorers.sentences import document
from scorers.spans import Finding, Located
from tests.pipeline import without_ray
from tests.pipeline.committed import bytes_below
from tests.pipeline.here import rows_of, run
from tests.pipeline.toy_scorers import ToyScorer
from tests.pipeline.verify.forging import reforge

PII = "pii=scrubadub,entities=none"
CODE = 'import os,sys\nx=1\ny = "🙂é"  \n'
TEXTS = [
    "" if number == 3 else f"Ünïcode 🙂 {number}. Write to jane{number}@example.com or +1 201-555-0123! All is well."
    for number in range(20)
]
SPANS = ("--spans", "pii", "--spans", "pep8")


def label(folder: Path, *options: str, expect: int = 0):
    inputs = [folder / "corpus", "--output", folder / "out", "--unit-size", "600", "--set", "shard_size=1500"]
    return run("label", *inputs, "--scorer", PII, "--scorer", "pep8", "--threshold", "pii=0", *options, expect=expect)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spans") / "corpus"
    folder.mkdir()
    lines = [json.dumps({"id": f"r{number}", "text": text}) for number, text in enumerate(TEXTS)]
    (folder / "prose.jsonl").write_text("\n".join(lines))
    (folder / "code.py").write_text(CODE)
    return folder


@pytest.fixture(scope="module")
def plain(corpus, tmp_path_factory):
    """A folder with the corpus and a dataset without spans."""
    folder = tmp_path_factory.mktemp("plain")
    shutil.copytree(corpus, folder / "corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        label(Path())
    return folder


@pytest.fixture(scope="module")
def spanned(plain, tmp_path_factory):
    """The same with spans from the start."""
    folder = tmp_path_factory.mktemp("spanned")
    shutil.copytree(plain / "corpus", folder / "corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        label(Path(), *SPANS)
    return folder


def copied(folder: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(folder, to / "made")
    monkeypatch.chdir(to / "made")
    return Path("out")


@pytest.fixture
def made(spanned, tmp_path, monkeypatch):
    """A copy of the dataset with spans."""
    return copied(spanned, tmp_path, monkeypatch)


@pytest.fixture
def bare(plain, tmp_path, monkeypatch):
    """A copy of the dataset without spans."""
    return copied(plain, tmp_path, monkeypatch)


def shards(out: Path) -> list[bytes]:
    return list(bytes_below(out, "data").values())


def record(text: str) -> Record:
    return Record("c.jsonl", len(text), "id", text, "{}", "prose", "")


def found(text: str, spans) -> list[tuple[str, str]]:
    return [(each["type"], text[each["start"] : each["end"]]) for each in spans]


def test_a_dataset_without_spans_is_as_before(plain):
    manifest = open_dataset(str(plain / "out")).manifest
    assert manifest.schema_version == 1
    assert "spans" not in manifest.to_json()
    assert "spans" not in (plain / "out/job/config.json").read_text()
    names = ["pii", "pii_aligned", "pep8", "pep8_aligned"]
    assert pq.read_schema(plain / "out" / manifest.shards[0].path).names[6:] == names


def test_spans_are_stored_beside_the_same_scores(plain, spanned):
    out = str(spanned / "out")
    manifest = open_dataset(out).manifest
    assert (manifest.schema_version, manifest.spans) == (2, ["pii", "pep8"])
    assert pq.read_schema(spanned / "out" / manifest.shards[0].path).equals(
        dataset_schema(["pii", "pep8"], ["pii", "pep8"])
    )
    assert verify(out).problems == []
    rows, before = rows_of(out), rows_of(plain / "out")
    for row, other in zip(rows, before, strict=True):
        assert {name: row[name] for name in other} == other
        if row["source"].endswith(".py"):
            assert found(CODE, row["pep8_spans"]) == [
                ("E231", ","),
                ("E401", ","),
                ("E225", "="),
                ("W291", "  "),
            ]
            assert row["pii_spans"] == []
        elif row["text"]:
            mail, phone = found(row["text"], row["pii_spans"])
            assert mail == ("email", f"jane{row['doc_id'][1:]}@example.com")
            assert phone == ("phone", "+1 201-555-0123")
            assert row["pep8_spans"] is None
        else:
            assert (row["pii_spans"], row["pep8_spans"]) == ([], None)
    assert dataset_identity(manifest) == dataset_identity(open_dataset(str(plain / "out")).manifest)


def test_spans_that_are_added_later_are_the_same_bytes(bare, spanned, monkeypatch):
    rows = rows_of(bare)
    monkeypatch.setenv(failpoints.VARIABLE, "generation-created=raise")
    monkeypatch.setattr(failpoints, "_passed", failpoints.Counter())
    # Interrupted: the dataset stays as it was.
    run("score", bare, *SPANS, expect=4)
    assert [{name: row[name] for name in rows[0]} for row in rows_of(bare)] == rows
    monkeypatch.delenv(failpoints.VARIABLE)
    added = run("score", bare, *SPANS)
    assert open_dataset(str(bare)).manifest.spans == ["pii", "pep8"]
    assert verify(str(bare)).problems == []
    assert shards(bare) == shards(spanned / "out")
    assert run("score", bare, *SPANS)["generation"] == added["generation"], "there is nothing left to do"


def test_spans_survive_retag_and_repair(made, monkeypatch):
    without_ray.install(monkeypatch)
    before = shards(made)
    run("retag", made, "--threshold", "pii=0.5")
    run("retag", made, "--threshold", "pii=0")
    assert shards(made) == before
    # A part, a shard and the manifest.
    next(made.glob("units/0001/*/00000001.cpu.parquet")).unlink()
    next(made.glob("data/*/part-00000.parquet")).unlink()
    (made / "manifest.json").unlink()
    assert repair(str(made), LabelExecution(), PlainReporter(io.StringIO())).left == []
    assert shards(made) == before
    assert verify(str(made)).problems == []


@pytest.mark.parametrize("lost", ["job/config.json", "job/layers/0002.json"])
def test_the_records_of_added_spans_are_repaired(bare, lost, monkeypatch):
    without_ray.install(monkeypatch)
    run("score", bare, "--spans", "pii")
    before = (bare / lost).read_bytes()
    (bare / lost).unlink()
    assert repair(str(bare), LabelExecution(), PlainReporter(io.StringIO())).left == []
    assert json.loads((bare / lost).read_text()) == json.loads(before)
    assert verify(str(bare)).problems == []


def test_spans_of_purged_documents_are_removed(bare, monkeypatch):
    without_ray.install(monkeypatch)
    run("score", bare, "--spans", "pii")
    purge(str(bare), Request(frozenset({"r1"}), None, frozenset()))
    assert not any(b"jane1@" in part for part in bytes_below(bare, "units").values())
    assert "r1" not in [row["doc_id"] for row in rows_of(bare)]
    assert verify(str(bare)).problems == []


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("label", ("--spans", "pii"), "scorers.pep8.spans: was True, now not set"),
        ("label", (*SPANS, "--spans", "other"), "no scorer fills that column; the columns are: pii, pep8"),
        ("score", ("--spans", "other"), "has no score column of that name; it has: pii, pep8"),
        ("score", ("--scorer", "toxicity=linear", "--spans", "toxicity"), "so it has no spans"),
        ("score", ("--scorer", "pii_spans=linear"), "already has a column 'pii_spans', of the spans of 'pii'"),
        ("score", ("--scorer", "pep8=scrubadub,entities=none", "--spans", "pep8"), "already has a column 'pep8'"),
    ],
)
def test_what_cannot_have_spans_is_refused(made, command, options, message):
    before = bytes_below(made, ".")
    printed = label(Path(), *options, expect=2) if command == "label" else run("score", made, *options, expect=2)
    assert message in " ".join(printed.split())
    assert bytes_below(made, ".") == before


def test_a_finished_job_says_how_to_add_spans(bare):
    printed = label(Path(), *SPANS, expect=2)
    assert "scorers.pii.spans: was not set, now True" in printed
    assert "phf score" in printed


def test_spans_of_a_changed_scorer_are_refused(bare, monkeypatch):
    from scorers.pii import scrubadub

    monkeypatch.setattr(scrubadub, "_REVISION", 99)
    printed = run("score", bare, "--spans", "pii", expect=2)
    assert "is not the one that scored" in printed
    assert "--scorer pii_2=scrubadub --spans pii_2" in printed


def test_columns_that_begin_with_other_spans_are_refused(bare, monkeypatch):
    without_ray.install(monkeypatch)
    config = ScoreConfig(dataset=str(bare), scorers={"late": ScorerSpec(kind="pycodestyle", spans=True)})
    monkeypatch.setenv(failpoints.VARIABLE, "record-created=raise")
    monkeypatch.setattr(failpoints, "_passed", failpoints.Counter())
    with pytest.raises(IncompleteError):
        run_score(config, PlainReporter(io.StringIO()))
    monkeypatch.delenv(failpoints.VARIABLE)
    printed = run("score", bare, "--scorer", "late=pycodestyle", expect=2)
    assert "scorers.late.spans: was True, now False" in printed
    run("score", bare, "--scorer", "late=pycodestyle,spans=true")
    assert open_dataset(str(bare)).manifest.spans == ["late"]


def test_large_documents_have_the_spans_of_their_parts():
    text = "".join(f"Mail 🙂 jane{number}@example.com now. Good. " for number in range(30))
    scorer = build("pii", ScorerSpec(kind="scrubadub", entities="none"))
    given = [record(text), record("Call +1 201-555-0123.")]
    (cut, other), (whole, _) = (
        label_records(given, {"pii": Locating(scorer)}, max_document_size=size).scored for size in (200, 10**6)
    )
    assert len(cut.spans["pii"]) == 30
    assert cut.spans == whole.spans
    assert [each.type for each in other.spans["pii"]] == ["phone"]


class SpottingScorer(ToyScorer):
    """Locates what `spot` returns for a document."""

    spot = staticmethod(lambda document: [Finding(0, 1, "x")])

    def locate(self, documents):
        return [
            each if isinstance(each, Exception) else Located(each, self.spot(one))
            for each, one in zip(self.score(documents), documents, strict=True)
        ]


@pytest.mark.parametrize(
    "wrong",
    [
        [Finding(0, 0, "x")],
        [Finding(-1, 2, "x")],
        [Finding(0, 99, "x")],
        [Finding(2, 9, "x")],  # across two sentences
        [Finding(1, 2, "x"), Finding(0, 1, "x")],
        [Finding(0, 1, "x" * 65)],
        [Finding(0, 1, "\u202e")],
        [Finding(0, 1, "{{x")],
        [Finding(0, 1, "")],
        [Finding(0, 1, "x", float("nan"))],
        [Finding(0, 1, "x", -1.0)],
    ],
)
def test_a_scorer_with_impossible_spans_loses_only_these_documents(wrong):
    scorer = SpottingScorer("toy")
    scorer.spot = lambda each: wrong if "bad" in each.text else [Finding(0, 1, "x")]
    done = label_records([record("Fine. Two."), record("So bad. Two."), record("POISON.")], {"toy": Locating(scorer)})
    assert [each.spans for each in done.scored] == [{"toy": [Finding(0, 1, "x")]}]
    assert [each.reason for each in done.quarantined] == ["invalid-score", "scorer-error"]


def test_a_span_in_a_sentence_that_scores_0_is_impossible():
    scorer = SpottingScorer("toy", ToyScorer.Options(scale=0.0))
    (refused,) = label_records([record("One. Two.")], {"toy": Locating(scorer)}).quarantined
    assert refused.detail == "toy: a span is in a sentence whose score is not above 0"


def change(**values):
    """A change of the first span of the shard."""

    def apply(rows):
        row = next(each for each in rows if each["pii_spans"])
        row["pii_spans"][0].update(values)

    return apply


def clear_score(rows):
    row = next(each for each in rows if each["pii_spans"])
    row["pii"] = [0.0] * len(row["pii"])
    row["pii_aligned"] = [True] * len(row["pii"])


def reverse(rows):
    next(each for each in rows if each["pii_spans"])["pii_spans"].reverse()


def lose(rows):
    next(each for each in rows if each["pii_spans"])["pii_spans"] = None


FORGED = [
    (change(start=-5), "empty or not inside a sentence"),
    (change(end=10**9), "empty or not inside a sentence"),
    (change(start=0), "empty or not inside a sentence"),
    (change(end=0), "empty or not inside a sentence"),
    (change(start=None), "without a start"),
    (change(type="<script>alert(1)</script>" * 9), "printable characters"),
    (change(type="\x1b[31mred"), "printable characters"),
    (change(score=float("nan")), "negative, NaN or infinite"),
    (clear_score, "score is not above 0"),
    (reverse, "not sorted"),
    (lose, "null exactly where"),
]


@pytest.mark.parametrize(("forge", "problem"), FORGED)
def test_forged_spans_are_found_by_verify_and_refused_by_readers(made, tmp_path, forge, problem):
    shard = open_dataset(str(made)).manifest.shards[0].path
    reforge(made, shard, forge)
    (printed,) = [str(each) for each in verify(str(made)).problems if "pii_spans" in str(each)]
    assert problem in printed
    assert "(1 row" in printed
    for read in (
        lambda opened: export(opened, "pii", str(tmp_path / "x.jsonl"), redact=["pii"]),
        lambda opened: count_types(opened, ["pii"]),
    ):
        with pytest.raises(DamagedError, match="'pii_spans'") as caught:
            read(open_dataset(str(made)))
        assert not {*"<\x1b"} & {*str(caught.value)}
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize("name", ["text", "type"])
def test_text_that_is_no_utf8_is_damage(made, tmp_path, name):
    shard = open_dataset(str(made)).manifest.shards[0].path

    def spoil(rows):
        row = next(each for each in rows if each["pii_spans"])
        (row if name == "text" else row["pii_spans"][0])[name] = "NOT-UTF8"

    reforge(made, shard, spoil, raw=(b"NOT-UTF8", b"NOT-\xff\xff\xff\xff"))
    assert "Invalid UTF8" in str(verify(str(made)).problems)
    with pytest.raises(DamagedError, match="Invalid UTF8"):
        export(open_dataset(str(made)), "pii", str(tmp_path / "x.jsonl"), redact=["pii"])


def test_export_redacts_what_was_found(made, tmp_path):
    done = run("export", made, "--column", "pii", "--redact", "pii", "--output", tmp_path / "out.jsonl")
    assert (done["documents"], done["unsearched"]) == (21, 0)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    texts = {"".join(row["texts"]) for row in rows if len(row["texts"]) == 3 and "import" not in row["texts"][0]}
    assert "Ünïcode 🙂 5. Write to {{EMAIL}} or {{PHONE}}! All is well." in texts
    assert "@example.com" not in (tmp_path / "out.jsonl").read_text()
    both = ("--redact", "pii", "--redact", "pep8", "--output", tmp_path / "code.jsonl")
    assert run("export", made, "--column", "pii", *both)["unsearched"] == 20
    (row,) = map(json.loads, (tmp_path / "code.jsonl").read_text().splitlines())
    assert row["texts"] == ["import os{{E231+E401}}sys\n", "x{{E225}}1\n", 'y = "🙂é"{{W291}}\n']


def test_export_cannot_redact_without_spans(bare, tmp_path):
    printed = run("export", bare, "-c", "pii", "--redact", "pii", "-o", tmp_path / "x.jsonl", expect=2)
    assert "has no spans of 'pii'; it has those of: none. To add them: phf score out --spans pii" in printed


def test_the_report_counts_types(made, tmp_path):
    report = run("report", made, "--output", tmp_path / "r.html")
    types = {each["column"]: each["types"] for each in report["columns"]}
    assert types["pii"] == [{"type": name, "spans": 19, "documents": 19} for name in ("email", "phone")]
    assert '<th scope="row">E231</th><td>1</td>' in (tmp_path / "r.html").read_text()
    assert "jane" not in (tmp_path / "r.html").read_text()


def test_rare_types_are_counted_together(made, monkeypatch):
    from pipeline.reporting import found_types

    monkeypatch.setattr(found_types, "_SHOWN", 1)
    assert count_types(open_dataset(str(made)), ["pii"]) == {
        "pii": [FoundType("email", 19, 19), FoundType("other", 19, 19)]
    }


def test_preview_counts_types(corpus):
    shown = run("preview", corpus / "prose.jsonl", "--scorer", f"{PII},spans=true", "--limit", "2")
    assert shown["types"] == {"pii": {"email": 2, "phone": 2}}


@pytest.mark.parametrize(
    ("changes", "printed"),
    [({"schema_version": 1}, "not that of its columns"), ({"schema_version": 3}, "has schema version 3, but")],
)
def test_a_manifest_has_the_version_of_its_columns(spanned, changes, printed):
    manifest = json.loads((spanned / "out/manifest.json").read_text())
    assert parse_manifest(json.dumps(manifest), "x").spans == ["pii", "pep8"]
    with pytest.raises(Exception, match=printed):
        parse_manifest(json.dumps(manifest | changes), "x")
    twice = manifest["scorers"] | {"pii_spans": {"kind": "linear", "options": {}, "fingerprint": "f"}}
    with pytest.raises(DamagedError, match="both scores and spans"):
        parse_manifest(json.dumps(manifest | {"scorers": twice}), "x")
    assert Manifest.model_fields["schema_version"].default == 1


def test_row_sizes_count_spans():
    span = {"start": 0, "end": 1, "type": "email", "score": 1.0}
    row = {"doc_id": "", "source": "", "position": 0, "text": "", "meta": "", "ends": [], "c": []}
    rows = [row | {"c_spans": spans} for spans in (None, [], [span], [span | {"type": "é"}, span])]
    sizes = row_sizes(pa.Table.from_pylist(rows, unit_schema(["c"], ["c"])))
    assert (sizes - sizes[0]).tolist() == [0, 0, 16 + 5, 2 * 16 + 2 + 5]


def test_spans_of_chosen_rows(made):
    opened = open_dataset(str(made))
    batch = next(opened.read_batches(["ends", "pii", spans_column("pii")]))
    every = spans_of(opened, batch, "pii")
    assert spans_of(opened, batch, "pii", [2, 0]) == [every[2], every[0]]


def test_one_pass_gives_scores_and_findings():
    documents = [document(text) for text in TEXTS]
    scorer = build("pii", ScorerSpec(kind="scrubadub", entities="none"))
    calls = []
    search = scorer.findings
    scorer.findings = lambda given: calls.append(len(given)) or search(given)
    located = scorer.locate(documents)
    assert calls == [20]
    for one, other in zip(located, scorer.score(documents), strict=True):
        assert np.array_equal(one.scores, other)
