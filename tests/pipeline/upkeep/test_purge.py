"""`phf purge` removes documents from a dataset and from what was built from it, and nothing labels them again."""

import io
import json
import os
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from phf import app
from pipeline.checking.verify import verify
from pipeline.dataset import open_dataset
from pipeline.dataset.derived import CACHE_VARIABLE, dataset_identity
from pipeline.job.epoch import Epoch
from pipeline.job.record import JOB
from pipeline.job.run_status import PROGRESS
from pipeline.labelling.label import run_label
from pipeline.labelling.monitoring.console import PlainReporter
from pipeline.sealing.retag import retag
from pipeline.storage import failpoints
from pipeline.storage.local import LocalStorage
from pipeline.upkeep.purge import Purged, Request, purge
from pipeline.upkeep.repair import repair
from scorers.errors import IncompleteError, UserError
from tests.pipeline import here, probe, upkept
from tests.pipeline.upkept import EXECUTION, LINES, TEXTS, Made
from training.data.build_store import ensure_store
from training.data.tokenizers import ensure_tokenizer

GONE = (1, 7, 8)
"""Documents that most tests remove."""
IDS = frozenset(f"r{number}" for number in GONE)
MALFORMED = ("corpus/1.jsonl", sum(len(line) + 1 for line in LINES[3:9]))
# Files whose content depends on how often a run began.
OWN = ("job/epochs/", "job/progress.json")


@pytest.fixture(scope="module", autouse=True)
def _in_process(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        upkept.set_up(patch, tmp_path_factory.mktemp("packages") / "site")
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def sealed(tmp_path_factory, _in_process):
    made = Made(tmp_path_factory.mktemp("sealed") / "made")
    made.folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        made.enter(patch)
        upkept.label(made, quarantine_text=True)
    return made


@pytest.fixture(scope="module")
def purged(sealed, tmp_path_factory):
    """The dataset after an undisturbed purge."""
    with pytest.MonkeyPatch.context() as patch:
        made = sealed.copy(tmp_path_factory.mktemp("purged") / "made", patch)
        remove(made)
    return made


@pytest.fixture
def made(sealed, tmp_path, monkeypatch):
    return sealed.copy(tmp_path / "made", monkeypatch)


def remove(made: Made, ids: frozenset[str] = IDS, keys: tuple[str, int] | None = MALFORMED, **options: bool) -> Purged:
    source, positions = (None, frozenset[int]()) if keys is None else (keys[0], frozenset({keys[1]}))
    return purge(str(made.out), Request(ids, source, positions), **options)


def label(made: Made, *, extend: bool = False) -> None:
    run_label(upkept.config(made, quarantine_text=True), PlainReporter(io.StringIO()), extend=extend)


def half_labelled(folder: Path, patch: pytest.MonkeyPatch) -> Made:
    """A job that stopped after it had committed two of its five units."""
    made = Made(folder)
    folder.mkdir()
    made.enter(patch)
    upkept.write_corpus(made)
    failpoints._passed.clear()
    patch.setenv(failpoints.VARIABLE, "record-created=raise@2")
    with pytest.raises(IncompleteError):
        label(made)
    patch.delenv(failpoints.VARIABLE)
    status = json.loads((made.out / PROGRESS).read_text())
    assert status["state"] == "incomplete"
    return made


def content(made: Made) -> dict[str, object]:
    """Every file of the output; records without the names of staging folders and the epoch of their driver."""
    found: dict[str, object] = {}
    for path in sorted(path for path in made.out.rglob("*") if path.is_file()):
        name = path.relative_to(made.out).as_posix()
        if name.startswith(OWN):
            continue
        data = path.read_bytes()
        if re.match(r"(units|generations)/.*\.json", name):
            data = re.sub(rb'"(staged|epoch|crc32)": ?("[^"]*"|\d+)', b"", data)
        is_segment = re.fullmatch(r"units/\d{4}/\d{5}\.parquet", name)
        found[name] = (
            [_settled(row) for row in pq.read_table(pa.BufferReader(data)).to_pylist()] if is_segment else data
        )
    return found


def _settled(row: dict) -> dict:
    parts = [{key: value for key, value in part.items() if key != "staged"} for part in row["parts"]]
    return {key: value for key, value in row.items() if key != "epoch"} | {"parts": parts}


def everything_readable(made: Made) -> str:
    """Every string in every file of the output and beside it."""
    found = []
    for path in sorted(path for path in made.folder.rglob("*") if path.is_file()):
        if path.is_relative_to(made.folder / "corpus"):
            continue
        data = path.read_bytes()
        if path.suffix == ".parquet":
            found.append(json.dumps(pq.read_table(pa.BufferReader(data)).to_pylist()))
        else:
            found.append(data.decode(errors="replace"))
    return "\n".join(found)


def holds(made: Made, number: int) -> bool:
    text = everything_readable(made)
    return TEXTS[number].split(". ")[0] + "." in text or f'"r{number}"' in text


def test_documents_are_removed_from_every_file_and_stay_accounted_for(made):
    before = here.rows_of(made.out)
    assert holds(made, 1)
    assert "no json" in everything_readable(made)
    done = remove(made)
    assert (len(done.found.rows), len(done.found.quarantined), done.found.texts) == (3, 1, 1)
    assert not any(holds(made, number) for number in GONE)
    assert "no json" not in everything_readable(made)
    tags = {f"{column}_aligned" for column in ("probe", "gpu", "late")}
    kept = [{key: row[key] for key in row.keys() - tags} for row in before if row["doc_id"] not in IDS]
    assert [{key: row[key] for key in row.keys() - tags} for row in here.rows_of(made.out)] == kept
    ledger = open_dataset(str(made.out)).manifest.ledger
    assert (ledger.records, ledger.labelled, ledger.quarantined) == (16, 12, {"purged": 4})
    assert ledger.balanced
    report = verify(str(made.out), inputs=True)
    assert (report.problems, report.inputs_compared, report.unfinished) == ([], True, ())
    entries = here.run("inspect", made.out, "--quarantined")["entries"]
    assert {each["reason"] for each in entries} == {"purged"}
    assert {(each["source"], each["position"]) for each in entries} >= {MALFORMED}
    assert here.run("status", made.out)["state"] == "sealed"
    assert "purged: removed later | 4 |" in (made.out / "README.md").read_text()
    assert here.run("gc", made.out)["orphans"] == []
    assert sorted(path.name for path in (made.out / "data").iterdir()) == ["0003"]


def test_a_dry_run_counts_and_changes_nothing(made):
    before = {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()}
    found = remove(made, dry_run=True).to_dict()
    assert (found["documents"], found["quarantined"], found["units"], found["ids_not_found"]) == (3, 1, 2, 0)
    assert {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()} == before


def test_nothing_labels_a_purged_document_again(made, purged):
    shutil.rmtree(made.out)
    shutil.copytree(purged.out, made.out)
    label(made)  # everything is labelled, and purged records do not count as quarantined
    assert here.run("label", "corpus", "--output", made.out, expect=2)
    for layer in ("0001", "0002"):
        for part in made.out.glob(f"units/{layer}/*/*.cpu.parquet"):
            part.unlink()
    done = repair(str(made.out), EXECUTION, PlainReporter(io.StringIO()))
    assert (done.ok, done.generation) == (True, 3)
    assert content(made) == content(purged), "a unit that is labelled again has the same bytes"
    assert not made.scored().keys() & {probe.key(TEXTS[number]) for number in GONE}
    assert retag(str(made.out), {"probe": "p25"}).after.ledger.purged == 4
    assert verify(str(made.out)).problems == []


def test_an_unfinished_job_does_not_label_what_was_purged(made, tmp_path, monkeypatch):
    remove(made)
    data = here.rows_of(made.out)
    half = half_labelled(tmp_path / "half", monkeypatch)
    first = remove(half, frozenset({"r1", "r7"}))
    assert (len(first.found.rows), first.missing_ids, first.found.unlabelled) == (1, 1, {MALFORMED})
    for number in (7, 8):
        key = ("corpus/1.jsonl", sum(len(line) + 1 for line in LINES[3:number]))
        assert remove(half, frozenset(), key).found.unlabelled == {key}
    (half.folder / "scored.log").unlink()
    label(half)
    assert not half.scored().keys() & {probe.key(TEXTS[number]) for number in GONE}
    assert [(row["doc_id"], row["probe"], row["gpu"]) for row in here.rows_of(half.out)] == [
        (row["doc_id"], row["probe"], row["gpu"]) for row in data
    ]
    assert open_dataset(str(half.out)).manifest.ledger.quarantined == {"purged": 4}
    assert verify(str(half.out), inputs=True).problems == []


def test_an_unfinished_extension_continues_without_what_was_purged(made, monkeypatch):
    (made.folder / "corpus/3.jsonl").write_text("\n".join(LINES).replace('"r', '"new'))
    failpoints._passed.clear()
    monkeypatch.setenv(failpoints.VARIABLE, "record-created=raise@3")
    with pytest.raises(IncompleteError):
        label(made, extend=True)
    monkeypatch.delenv(failpoints.VARIABLE)
    done = remove(made, frozenset({"r1", "new0"}), None)
    assert (len(done.found.rows), done.missing_ids) == (2, 0)
    report = verify(str(made.out))
    assert (report.problems, [step.command for step in report.unfinished]) == ([], ["phf label --extend"])
    assert open_dataset(str(made.out)).manifest.ledger.quarantined == {"not-json": 1, "purged": 1}
    label(made, extend=True)
    names = {f"{kind}{number}" for kind in ("r", "new") for number in range(15)}
    assert {row["doc_id"] for row in here.rows_of(made.out)} == names - {"r1", "new0"}
    assert verify(str(made.out), inputs=True).problems == []


def test_a_job_whose_input_no_longer_holds_the_document_is_refused_until_it_is_restored(tmp_path, monkeypatch):
    half = half_labelled(tmp_path / "half", monkeypatch)
    remove(half, frozenset({"r1"}), None)
    path = half.folder / "corpus/0.jsonl"
    content = path.read_text()
    path.write_text(content.replace(LINES[1] + "\n", ""))
    with pytest.raises(UserError, match=r"(?s)changed: corpus/0.jsonl.*Documents were purged here: remove them from"):
        label(half)
    path.write_text(content)
    label(half)
    assert "r1" not in [row["doc_id"] for row in here.rows_of(half.out)]


class Dies(BaseException):
    """The process dies: nothing after it reaches the storage."""


class Dying:
    """Lets a number of changes of the storage happen, and none after that, as if the process had been killed."""

    CHANGES = ("put", "put_if_absent", "move", "delete", "delete_folder", "delete_empty", "open_write")

    def __init__(self, patch: pytest.MonkeyPatch, after: int) -> None:
        self.count, self.dead = 0, False
        for name in self.CHANGES:
            patch.setattr(LocalStorage, name, self._guarded(getattr(LocalStorage, name), after))

    def _guarded(self, act, after):
        def guarded(storage, *arguments):
            if self.dead or self.count == after:
                self.dead = True
                raise Dies
            self.count += 1
            return act(storage, *arguments)

        return guarded


@pytest.mark.slow
def test_a_purge_killed_before_any_change_continues_to_the_same_bytes(sealed, purged, tmp_path):
    wanted = content(purged)
    full, small = open_dataset(str(sealed.out)), open_dataset(str(purged.out))
    rows = {full.manifest.generation: here.rows_of(sealed.out), small.manifest.generation: here.rows_of(purged.out)}
    finished = False
    after = pending = 0
    while not finished:
        with pytest.MonkeyPatch.context() as patch:
            made = sealed.copy(tmp_path / "made", patch)
            with pytest.MonkeyPatch.context() as dying:
                Dying(dying, after)
                try:
                    remove(made)
                    finished = True
                except Dies:
                    pass
            # Readers find one whole generation, and damage is never silent.
            with_all = open_dataset(str(made.out))
            assert here.rows_of(made.out) == rows[with_all.manifest.generation], after
            record = json.loads((made.out / JOB).read_text())
            if record.get("purged", 0) < record.get("purges", 0):
                pending += 1
                report = verify(str(made.out))
                assert any("Purging" in str(step) for step in report.unfinished), after
                with pytest.raises(IncompleteError, match=r"A purge of .* was interrupted"):
                    retag(str(made.out), {"probe": "p25"})
            # The same command finishes it; once the tombstones count, also one without documents.
            again = remove(made) if after % 2 or not record.get("purges") else remove(made, frozenset(), None)
            assert again.continued == (record.get("purged", 0) < record.get("purges", 0)), after
            assert content(made) == wanted, after
            shutil.rmtree(made.folder)
        after += 1
    assert pending > 20, "most of the steps come after the tombstones"
    assert verify(str(purged.out)).problems == []


def test_what_a_stopped_run_commits_later_is_not_sealed(tmp_path, monkeypatch):
    half = half_labelled(tmp_path / "half", monkeypatch)
    key = ("corpus/2.jsonl", 0)
    remove(half, frozenset(), key)
    # A run of before the purge, which was asleep in the middle of its commit.
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.job.record.read_purged", lambda *_: frozenset())
        label(half)
    for name in ("data", "ledger", "generations"):
        shutil.rmtree(half.out / name)
    (half.out / "manifest.json").unlink()
    with pytest.raises(IncompleteError, match=r"holds a document that was purged.*phf purge"):
        label(half)
    done = remove(half, frozenset(), None)
    assert (done.continued, len(done.found.rows)) == (True, 1)
    label(half)
    assert "r9" not in [row["doc_id"] for row in here.rows_of(half.out)]
    assert verify(str(half.out)).problems == []


def test_a_dataset_that_is_being_labelled_is_refused(made):
    status = json.loads((made.out / PROGRESS).read_text())
    (made.out / PROGRESS).write_text(json.dumps({**status, "state": "labelling", "written": "2999-01-01T00:00:00Z"}))
    before = content(made)
    with pytest.raises(UserError, match=r"is being labelled on .*, process .* Nothing was changed"):
        remove(made)
    assert content(made) == before


def test_a_newer_run_stops_a_purge_which_can_then_be_finished(made, purged, monkeypatch):
    with monkeypatch.context() as patch:
        write = LocalStorage.put

        def put(storage, path, data):
            write(storage, path, data)
            if path.startswith("units/"):
                Epoch.claim(storage)

        patch.setattr(LocalStorage, "put", put)
        result = CliRunner().invoke(app, ["purge", str(made.out), *(f"--doc-id={each}" for each in sorted(IDS))])
        assert result.exit_code == 75, result.output
    remove(made, frozenset(), MALFORMED)
    assert {row["doc_id"] for row in here.rows_of(made.out)} == {row["doc_id"] for row in here.rows_of(purged.out)}


def test_token_stores_with_the_documents_are_deleted(made, purged, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))
    dataset = open_dataset(str(made.out))
    tokenizer = ensure_tokenizer(dataset, 300)
    store = ensure_store(dataset, tokenizer).path
    (cache / "tokens").mkdir(parents=True)
    same_text, unrelated = cache / "tokens" / "a", cache / "tokens" / "b"
    shutil.copytree(ensure_store(open_dataset(str(purged.out)), tokenizer, tmp_path / "store").path, unrelated)
    shutil.copytree(store, same_text)
    meta = json.loads((same_text / "store.json").read_text())
    (same_text / "store.json").write_text(json.dumps({**meta, "dataset": "of another dataset"}))
    link = store.with_name("linked")
    link.symlink_to(unrelated)
    leftover = store.with_name(".c.building")
    leftover.mkdir()
    done = remove(made)
    assert {store, same_text, leftover} == set(done.derived.stores)
    assert not any(path.exists() for path in (store, same_text, leftover))
    assert unrelated.is_dir()
    assert (done.derived.tokenizers, done.derived.links) == ([Path(tokenizer.name)], [link])
    assert dataset_identity(open_dataset(str(made.out)).manifest) != dataset_identity(dataset.manifest)


def test_other_hard_links_are_named(made, tmp_path):
    part = made.out / "units/0001/00000/00000000.cpu.parquet"
    os.link(part, tmp_path / "copy.parquet")
    result = CliRunner().invoke(app, ["purge", str(made.out), "--doc-id", "r1"])
    assert result.exit_code == 0, result.output
    assert "other hard links to the former units/0001/00000/00000000.cpu.parquet" in " ".join(result.output.split())


def test_older_generations_and_files_of_dead_processes_are_deleted(made):
    text = TEXTS[1]
    for name in ("data/0001/part-00000.parquet", "staging/00000001/00000001.cpu.0.parquet", "units/.x.json.1234.tmp"):
        (made.out / name).parent.mkdir(parents=True, exist_ok=True)
        (made.out / name).write_text(text) if name.endswith("tmp") else pq.write_table(
            pa.table({"text": [text]}), made.out / name
        )
    remove(made)
    assert not holds(made, 1)
    assert verify(str(made.out)).problems == []


def test_lost_tombstones_are_noticed(purged, tmp_path, monkeypatch):
    made = purged.copy(tmp_path / "made", monkeypatch)
    (made.out / "job/purged/0001.json").unlink()
    assert [each.path for each in verify(str(made.out)).problems] == ["job/purged/0001.json"]
    with pytest.raises(UserError, match=r"job/purged/0001.json is damaged or missing.*label documents again"):
        label(made)
    done = repair(str(made.out), EXECUTION, PlainReporter(io.StringIO()))
    assert [each.path for each in done.left] == ["job/purged/0001.json"]


def test_a_lost_record_of_the_job_is_repaired_with_its_tombstones(purged, tmp_path, monkeypatch):
    made = purged.copy(tmp_path / "made", monkeypatch)
    (made.out / JOB).unlink()
    assert repair(str(made.out), EXECUTION, PlainReporter(io.StringIO())).ok
    assert remove(made, frozenset(), None).continued
    assert content(made) == content(purged)


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--source", "corpus/1.jsonl"], 2, "Give --source and --position together"),
        (
            ["--source", "corpus/9.jsonl", "--position", "0"],
            2,
            "corpus/9.jsonl is not among the inputs (corpus/0",
        ),
        (["--source", "corpus/1.jsonl", "--position", "5"], 2, "There is no record at position 5 of corpus/1.jsonl"),
        (["--source", "corpus/1.jsonl", "--position", "99999"], 2, "There is no record at position 99999"),
        (["--doc-ids", "missing.txt"], 2, "missing.txt cannot be read: No such file"),
        (["--doc-ids", "empty.txt"], 2, "empty.txt holds no id"),
        (["--doc-ids", "binary.txt"], 2, "binary.txt is not UTF-8"),
        (["--doc-id", "nobody"], 1, "1 id not found in any row"),
        ([], 0, "Nothing to remove"),
    ],
)
def test_bad_usage_changes_nothing(made, options, status, message):
    Path("empty.txt").write_text("\n\n")
    Path("binary.txt").write_bytes(b"\xff\xfe")
    before = content(made)
    result = CliRunner().invoke(app, ["purge", str(made.out), *options])
    assert result.exit_code == status, result.output
    assert message in " ".join(result.output.split())
    assert content(made) == before


def test_ids_are_read_from_a_file_and_never_printed(made, purged):
    Path("ids.txt").write_text("".join(f"{each}\r\n" for each in sorted(IDS)))
    source, position = MALFORMED
    options = ["--doc-ids", "ids.txt", "--source", source, "--position", str(position)]
    result = CliRunner().invoke(app, ["purge", str(made.out), *options])
    assert result.exit_code == 0, result.output
    assert "4 records removed" in result.output
    assert not re.search(r"\br[178]\b", result.output)
    assert content(made) == content(purged)
    assert CliRunner().invoke(app, ["purge", str(made.out), "--doc-ids", "ids.txt"]).exit_code == 1


def test_a_copy_without_units_is_refused(made):
    for name in ("units", "job", "generations"):
        shutil.rmtree(made.out / name)
    with pytest.raises(UserError, match="is a copy without its scored units"):
        remove(made)


def test_versions_that_know_no_tombstones_refuse_the_job(purged):
    record = json.loads((purged.out / JOB).read_text())
    assert (record["version"], record["purges"], record["purged"]) == (2, 1, 1)
    assert "r1" not in (purged.out / "job/purged/0001.json").read_text()
