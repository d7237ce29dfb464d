"""`phf verify --inputs` against a dataset that was labelled from real inputs, without Ray."""

import gzip
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from phf import app
from pipeline.checking.verify import verify
from pipeline.config import LabelConfig
from pipeline.corpus.cut_units import make_plan
from pipeline.dataset import open_dataset
from pipeline.job.epoch import Epoch
from pipeline.job.plan_files import write_plan
from pipeline.job.record import JOB, JobRecord, StoredJob
from pipeline.job.unit_store import UnitStore
from pipeline.labelling.commit import Committer
from pipeline.labelling.resolve import BASE_GROUP, ResolvedJob, resolve_config, scorer_entries
from pipeline.labelling.workers.worker import UnitLabeller
from pipeline.sealing.seal import contents_of, seal
from pipeline.storage.checked_json import to_checked
from pipeline.storage.open import open_storage
from scorers import sentences
from scorers.errors import UserError
from tests.pipeline.verify.forging import SHARD, reforge

RECORDS = [{"id": f"r{n}", "text": f"Satz {n} — ja. Und\u2028weiter!\r\nNoch\0was", "source": "web"} for n in range(20)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Inputs with every kind of defect, labelled in this process from their folder."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        label(folder / "corpus")
    return folder


@pytest.fixture
def labelled(made, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(made, tmp_path / "made"))
    monkeypatch.chdir(folder)
    return folder


def label(corpus):
    corpus.mkdir()
    lines = [json.dumps(record).encode() for record in RECORDS]
    lines[3:3] = [b"no json", b'{"id": 1}', b'{"text": "\\ud800"}', b'{"text": "\xff"}', b"", b'{"text": ""}']
    (corpus / "a.jsonl").write_bytes(b"\n".join(lines))
    (corpus / "b.py").write_bytes(b"x=1\r\ny = 2\r# ende")
    whole = gzip.compress(b"\n".join(json.dumps({"text": f"Zip {n}. {n * 7919}!"}).encode() for n in range(500)))
    (corpus / "c.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    pq.write_table(pa.table({"id": ["p0", "p1"], "text": ["Parkett.", "Zwei. Drei."]}), corpus / "d.parquet")
    config = resolve_config(
        LabelConfig.model_validate(
            {"inputs": ["corpus"], "output": "out", "scorers": {"pep8": {"kind": "pycodestyle"}}, "unit_size": 1000}
        )
    )
    plan = make_plan(config)
    epoch = Epoch.claim(open_storage("out"))
    labeller = UnitLabeller(ResolvedJob(config, plan, {BASE_GROUP: ["pep8"]}, {}), BASE_GROUP)
    for unit in plan.units:
        part = labeller.label(unit, f"{epoch.staging}/{unit.name}.parquet")
        Committer(epoch, UnitStore(epoch.storage)).commit(unit, [part])
    scorers = scorer_entries(config.scorers, config.execution)
    record = JobRecord(config=config.semantic(), scorers=scorers, sentences=sentences.fingerprint())
    epoch.storage.put(JOB, to_checked(record))
    write_plan(epoch.storage, 1, config.inputs, plan)
    manifest = seal(epoch, contents_of(StoredJob(epoch.storage, record, [], plan), [1], {}), generation=1)
    assert len(plan.units) > 5
    assert manifest.ledger.sources_cut == 1
    assert sum(manifest.ledger.quarantined.values()) == 4


def problems():
    return [str(problem) for problem in verify("out", inputs=True).problems]


def test_every_record_is_found_in_the_inputs(labelled):
    report = verify("out", inputs=True)
    assert report.problems == []
    assert report.inputs_compared
    texts = [row["text"] for batch in open_dataset("out").read_batches() for row in batch.to_pylist()]
    assert texts[:3] == [record["text"] for record in RECORDS[:3]]
    assert "x=1\r\ny = 2\r# ende" in texts


def test_the_command_says_that_the_inputs_were_compared(labelled):
    result = CliRunner().invoke(app, ["verify", "out", "--inputs"])
    assert result.exit_code == 0, result.output
    assert "Every text matches the inputs." in result.stdout


def change_text(rows):
    rows[2]["text"] = rows[2]["text"].replace("Satz", "Sutz")


def change_id(rows):
    rows[2]["doc_id"] = "r9"


def change_meta(rows):
    rows[2]["meta"] = "{}"


@pytest.mark.parametrize(("change", "name"), [(change_text, "text"), (change_id, "doc_id"), (change_meta, "meta")])
def test_changes_that_no_other_check_finds_are_named(labelled, change, name):
    reforge(labelled / "out", change=change)
    position = (
        open_dataset("out").manifest.shards[0] and next(open_dataset("out").read_batches())["position"][2].as_py()
    )
    what = f"data: `{name}` differs from the input (1 row, the first is corpus/a.jsonl#{position})"
    assert problems() == [what]


def test_a_changed_input_is_named(labelled):
    path = labelled / "corpus/b.py"
    path.write_bytes(path.read_bytes() + b"\n")
    assert problems() == ["corpus/b.py: has changed since it was labelled"]


def test_new_and_lost_inputs_are_named(labelled):
    (labelled / "corpus/b.py").rename(labelled / "corpus/e.py")
    assert problems() == [
        "corpus/b.py: was labelled, but is not among the inputs now",
        "corpus/e.py: is among the inputs now, but was not labelled",
    ]


def test_missing_inputs_are_refused(labelled, monkeypatch):
    monkeypatch.chdir(labelled / "corpus")
    with pytest.raises(UserError, match="There is no input corpus"):
        verify("../out", inputs=True)


def test_a_damaged_dataset_is_not_compared(labelled):
    (labelled / "out" / SHARD).write_bytes(b"")
    report = verify("out", inputs=True)
    assert not report.ok
    assert not report.inputs_compared
