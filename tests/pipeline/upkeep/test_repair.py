"""`phf repair` restores a sealed dataset in which a file was damaged."""

import io
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phf import app
from pipeline.checking.verify import verify
from pipeline.config import LabelExecution
from pipeline.dataset import open_dataset
from pipeline.job.epoch import Epoch
from pipeline.job.run_status import PROGRESS
from pipeline.job.unit_rows import read_rows
from pipeline.job.unit_store import UnitStore
from pipeline.labelling.monitoring.console import PlainReporter
from pipeline.sealing.retag import retag
from pipeline.storage.local import LocalStorage
from pipeline.upkeep.relabelling import Replacer
from pipeline.upkeep.repair import Repaired, repair
from scorers.errors import StoppedError, UserError
from tests.pipeline import probe, upkept
from tests.pipeline.committed import bytes_below
from tests.pipeline.upkept import EXECUTION, TEXTS, UNITS, Made


@pytest.fixture(scope="module", autouse=True)
def _in_process(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        upkept.set_up(patch, tmp_path_factory.mktemp("packages") / "site")
        yield


@pytest.fixture(scope="module")
def sealed(tmp_path_factory, _in_process):
    made = Made(tmp_path_factory.mktemp("sealed") / "made")
    made.folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        made.enter(patch)
        upkept.label(made)
    assert len(list(made.out.glob("units/0001/*/*.json"))) == UNITS
    assert verify(str(made.out)).problems == []
    return made


@pytest.fixture
def made(sealed, tmp_path, monkeypatch):
    return sealed.copy(tmp_path / "made", monkeypatch)


def run_repair(made: Made, *, dry_run: bool = False, execution: LabelExecution = EXECUTION) -> Repaired:
    return repair(str(made.out), execution, PlainReporter(io.StringIO()), dry_run=dry_run)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES = {"flip": flip, "cut": cut, "delete": Path.unlink}

# By kind of file: its path, the unit that must be scored again, and the number of its columns.
FILES = {
    "part": ("units/0001/00001/00000003.cpu.parquet", 3, 1),
    "part-of-a-group": ("units/0001/00001/00000002.gpu.parquet", 2, 1),
    "part-of-a-layer": ("units/0002/00000/00000001.cpu.parquet", 1, 1),
    "record-in-a-segment": ("units/0001/00000/00000001.json", None, 0),
    "record": ("units/0001/00002/00000004.json", 4, 2),
    "record-of-a-layer": ("units/0002/00002/00000004.json", 4, 1),
    "segment": ("units/0001/00001.parquet", None, 0),
    "shard": ("data/0002/part-00001.parquet", None, 0),
    "ledger": ("ledger/0002/units-00000.parquet", None, 0),
    "quarantine": ("ledger/0002/quarantine-00000.parquet", None, 0),
    "manifest": ("manifest.json", None, 0),
    "generation": ("generations/0002.json", None, 0),
    "plan": ("job/plan/0001.json", None, 0),
    "plan-units": ("units", None, 0),
    "plan-sources": ("sources", None, 0),
    "job": ("job/config.json", None, 0),
    "layer": ("job/layers/0002.json", None, 0),
}


def path_of(made: Made, kind: str) -> str:
    path = FILES[kind][0]
    if kind.startswith("plan-"):
        path = json.loads((made.out / "job/plan/0001.json").read_text())[path]["path"]
    return path


def texts_of(sealed: Made, unit: int) -> Counter[str]:
    rows = read_rows(sealed.storage, UnitStore(sealed.storage).read(unit), [])
    return Counter(probe.key(text) for text in rows.column("text").to_pylist())


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", FILES)
def test_one_damaged_file_is_named_and_repaired_and_nothing_else_changes(sealed, made, kind, damage):
    path, (_, unit, columns) = path_of(made, kind), FILES[kind]
    before = bytes_below(made.out, "")
    DAMAGES[damage](made.out / path)
    assert path in [problem.path for problem in verify(str(made.out)).problems]
    repaired = run_repair(made)
    assert repaired.left == []
    assert verify(str(made.out)).problems == []
    assert made.data() == sealed.data()
    texts = texts_of(sealed, unit) if unit is not None else Counter()
    assert made.scored() == Counter({key: count * columns for key, count in texts.items()})
    after = bytes_below(made.out, "")
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    expected = {name for name in changed if name.startswith(("job/epochs/", "job/progress"))}
    if kind in ("record", "record-of-a-layer", "generation"):
        expected.add(path)  # it names other staging folders and another epoch
    assert changed <= expected
    assert [step.path for step in repaired.done][:1] == [path]


def test_an_intact_dataset_is_not_changed(made):
    before = bytes_below(made.out, "")
    repaired = run_repair(made)
    assert (repaired.ok, repaired.problems, repaired.done) == (True, [], [])
    assert bytes_below(made.out, "") == before


def test_a_dry_run_lists_the_steps_and_changes_nothing(made):
    flip(made.out / path_of(made, "part"))
    cut(made.out / path_of(made, "shard"))
    (made.out / path_of(made, "segment")).unlink()
    before = bytes_below(made.out, "")
    planned = run_repair(made, dry_run=True)
    assert bytes_below(made.out, "") == before
    done = run_repair(made)
    assert planned.ok
    assert done.ok
    assert {step.path for step in planned.done} == {step.path for step in done.done}
    assert {step.path for step in done.done} == {path_of(made, kind) for kind in ("part", "shard", "segment")}


def test_a_dry_run_lists_what_depends_on_the_job(made):
    for kind in ("part", "plan-units"):
        flip(made.out / path_of(made, kind))
    planned = run_repair(made, dry_run=True)
    assert planned.left == []
    assert {step.path for step in planned.done} == {path_of(made, kind) for kind in ("part", "plan-units")}


def test_many_damaged_files_are_repaired_at_once(sealed, made):
    for kind in ("part", "part-of-a-group", "record-in-a-segment", "shard", "manifest", "generation", "plan-units"):
        flip(made.out / path_of(made, kind))
    (made.out / "units/0001/00001.parquet").unlink()
    (made.out / "README.md").unlink()
    shutil.rmtree(made.out / "units/0002/00002")
    assert run_repair(made).left == []
    assert made.data() == sealed.data()
    assert bytes_below(made.out, "ledger") == bytes_below(sealed.out, "ledger")


def test_a_lost_manifest_and_generation_are_derived_from_the_units(sealed, made):
    (made.out / "manifest.json").unlink()
    (made.out / "generations/0002.json").write_text("{")
    assert run_repair(made).left == []
    assert made.data() == sealed.data()
    assert open_dataset(str(made.out)).manifest == open_dataset(str(sealed.out)).manifest


def test_thresholds_of_a_retag_are_kept(sealed, made):
    retag(str(made.out), {"probe": 0.02})
    before = made.data()
    flip(made.out / "data/0003/part-00000.parquet")
    flip(made.out / "generations/0003.json")
    assert run_repair(made).left == []
    assert made.data() == before


@pytest.mark.parametrize("damage", ["change", "grow", "delete"])
def test_a_changed_input_is_named(made, damage):
    # The unit's record is gone, so only the fingerprint of the input can reveal the change.
    (made.out / path_of(made, "record")).unlink()
    source = made.folder / "corpus/2.jsonl"
    if damage == "delete":
        source.unlink()
    else:
        old = source.read_text()
        source.write_text(old.replace("second", "second " if damage == "grow" else "sedonc"))
    flip(made.out / path_of(made, "segment"))
    data = made.data()
    repaired = run_repair(made)
    assert [problem.path for problem in repaired.left] == [path_of(made, "record")]
    assert "corpus/2.jsonl" in repaired.left[0].what
    assert [step.path for step in repaired.done] == [path_of(made, "segment")], "the rest is mended all the same"
    assert made.data() == data
    assert run_repair(made).left[0].path == path_of(made, "record")


def test_other_scorers_are_refused(made, monkeypatch):
    flip(made.out / path_of(made, "part"))
    monkeypatch.setenv("PHF_PROBE_FINGERPRINT", "other")
    repaired = run_repair(made)
    assert [problem.path for problem in repaired.left] == [path_of(made, "part")]
    assert "fingerprint" in repaired.left[0].what
    assert made.scored() == Counter()


def test_files_that_depend_on_lost_units_are_not_repaired_before_them(made):
    flip(made.out / path_of(made, "part"))
    flip(made.out / path_of(made, "shard"))
    shutil.rmtree(made.folder / "corpus")
    repaired = run_repair(made)
    assert {problem.path for problem in repaired.left} == {path_of(made, "part"), path_of(made, "shard")}


def test_another_type_of_cpu_replaces_the_record_and_seals_a_new_generation(sealed, made, monkeypatch):
    flip(made.out / path_of(made, "part"))
    score = probe.ProbeScorer.score
    monkeypatch.setattr(probe.ProbeScorer, "score", lambda self, given: [each * 1.0001 for each in score(self, given)])
    repaired = run_repair(made)
    assert repaired.left == []
    assert repaired.generation == 3
    assert sorted(path.name for path in (made.out / "data").iterdir()) == ["0003"]
    # Its other group was labelled again too, since all groups of a unit share its quarantine; no other unit was.
    assert set(made.scored()) == set(texts_of(sealed, 3))
    rows = [row for batch in open_dataset(str(made.out)).read_batches() for row in batch.to_pylist()]
    assert [row["text"] for row in rows] == TEXTS
    assert run_repair(made).problems == []


def test_a_dataset_that_is_still_being_labelled_is_repaired_too(sealed, made):
    for name in ("manifest.json", "generations", "data", "ledger", "README.md"):
        path = made.out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (made.out / "units/0001/00002/00000004.json").unlink()
    flip(made.out / path_of(made, "part"))
    repaired = run_repair(made)
    assert (repaired.left, repaired.generation) == ([], None)
    assert set(made.scored()) == set(texts_of(sealed, 3))


class CrashError(BaseException):
    """Stands for the death of the process."""


class CrashingStorage(LocalStorage):
    """Dies at the n-th durable step, either just before it takes effect or just after."""

    steps = 0
    after = False

    def _step(self, act):
        type(self).steps -= 1
        if self.steps == 0 and not self.after:
            raise CrashError
        act()
        if self.steps == 0:
            raise CrashError

    def put(self, path, data):
        # The status file is not a step of the work, and a thread writes it too.
        if path == PROGRESS:
            super().put(path, data)
        else:
            self._step(lambda: LocalStorage.put(self, path, data))

    def move(self, source, target):
        self._step(lambda: LocalStorage.move(self, source, target))

    def delete(self, path):
        self._step(lambda: LocalStorage.delete(self, path))


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("other_cpu", [False, True])
def test_a_repair_that_dies_at_any_step_is_finished_by_the_next(sealed, tmp_path, monkeypatch, after, other_cpu):
    if other_cpu:
        score = probe.ProbeScorer.score
        monkeypatch.setattr(probe.ProbeScorer, "score", lambda *given: [each * 2 for each in score(*given)])
    for steps in range(1, 100):
        made = sealed.copy(tmp_path / f"{steps}", monkeypatch)
        for kind in ("part", "record-in-a-segment", "segment", "shard", "generation"):
            flip(made.out / path_of(made, kind))
        with monkeypatch.context() as patch:
            patch.setattr(CrashingStorage, "steps", steps)
            patch.setattr(CrashingStorage, "after", after)
            patch.setattr("pipeline.storage.open.LocalStorage", CrashingStorage)
            try:
                run_repair(made)
            except CrashError:
                pass
            else:
                break
        assert run_repair(made).left == []
        assert verify(str(made.out)).problems == []
        rows = [row for batch in open_dataset(str(made.out)).read_batches() for row in batch.to_pylist()]
        assert [row["text"] for row in rows] == TEXTS
        if not other_cpu:
            assert made.data() == sealed.data()
        shutil.rmtree(made.folder)
    assert steps > 5


def test_a_copy_without_units_and_an_empty_folder_are_refused(made, tmp_path):
    shutil.rmtree(made.out / "units")
    flip(made.out / path_of(made, "shard"))
    with pytest.raises(UserError, match="a copy without the scored units"):
        run_repair(made)
    with pytest.raises(UserError, match="There is nothing at"):
        repair(str(tmp_path / "none"), EXECUTION, PlainReporter(io.StringIO()))


def test_a_newer_run_stops_it(made, monkeypatch):
    flip(made.out / path_of(made, "part"))
    label = Replacer.commit

    def overtaken(self, unit, parts):
        Epoch.claim(made.storage)
        return label(self, unit, parts)

    with monkeypatch.context() as patch:
        patch.setattr(Replacer, "commit", overtaken)
        with pytest.raises(StoppedError, match="taken over"):
            run_repair(made)
    assert run_repair(made).left == []


def test_the_command_shows_what_was_done(made):
    flip(made.out / path_of(made, "part-of-a-layer"))
    (made.out / "units/0001/00000/00000001.other.parquet").write_text("")
    (made.out / "README.md").unlink()
    result = CliRunner().invoke(app, ["repair", str(made.out), "--set", "execution.pools.gpu=cuda"])
    assert result.exit_code == 4
    assert f"{path_of(made, 'part-of-a-layer')}: the unit is labelled again" in result.stdout
    assert "phf gc" in result.stdout
    (made.out / "units/0001/00000/00000001.other.parquet").unlink()
    as_json = CliRunner().invoke(app, ["repair", str(made.out), "--json"])
    assert as_json.exit_code == 0
    assert json.loads(as_json.stdout)["ok"] is True
