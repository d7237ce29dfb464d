"""`phf gc` removes what nothing needs, and nothing else."""

import io
import json
import os
import shutil
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from phf import app
from pipeline.checking.verify import verify
from pipeline.dataset.manifest import DamagedError
from pipeline.job.epoch import Epoch, newest_epoch
from pipeline.job.record import load_job
from pipeline.job.run_status import PROGRESS
from pipeline.job.unit_store import UnitStore
from pipeline.labelling.monitoring.console import PlainReporter
from pipeline.labelling.resolve import resolve_layer
from pipeline.labelling.run import Run, RunContext
from pipeline.sealing.retag import retag
from pipeline.storage.local import LocalStorage
from pipeline.upkeep import gc as gc_module
from pipeline.upkeep.gc import collect
from scorers.errors import StoppedError, UserError
from tests.pipeline import upkept
from tests.pipeline.committed import bytes_below
from tests.pipeline.upkept import EXECUTION, UNITS, Made


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
        upkept.label(made, layers=1)
    return made


@pytest.fixture
def made(sealed, tmp_path, monkeypatch):
    return sealed.copy(tmp_path / "made", monkeypatch)


def add_orphan(made: Made, path: str, age_s: float = 7200.0) -> str:
    """Write a file that nothing needs."""
    target = made.out / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"nobody needs this")
    then = datetime.now(UTC).timestamp() - age_s
    os.utime(target, (then, then))
    return path


LITTER = [
    "staging/00000001/00000007.cpu.3.parquet",
    "staging/00000001/generation-0001/data/0001/part-00000.parquet",
    "staging/notes.txt",
    "units/0001/00002/00000004.old.parquet",
    "units/0001/00003/00000006.cpu.parquet",
    "units/0001/00003/00000006.json",
    "units/0004/00000/00000000.cpu.parquet",
    "job/plan/0123456789abcdef0123456789abcdef.parquet",
    "data/0007/part-00000.parquet",
    "data/0001/part-00099.parquet",
    "ledger/0003/units-00000.parquet",
    "units/0001/00000/.00000001.json.0123456789abcdef.tmp",
    ".manifest.json.0123456789abcdef.tmp",
]


def leave_staged(made: Made, unit: int) -> None:
    """Restore the state after a crash between writing a unit's record and moving its parts, with a newer epoch."""
    Epoch.claim(made.storage)
    for part in UnitStore(made.storage).read(unit).parts:
        made.storage.move(part.path, part.staged)


def leave_unswapped(made: Made) -> None:
    """Restore the state after a crash between writing a generation's record and swapping it in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.sealing.seal.finish_seal", lambda epoch: None)
        patch.setattr(LocalStorage, "delete_folder", lambda *_: None)
        retag(str(made.out), {"probe": 0.03})


def keep_old_generation(made: Made) -> None:
    """Restore the state after a crash between the swap and the deletion of the older generation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStorage, "delete_folder", lambda *_: None)
        patch.setattr(LocalStorage, "delete", lambda *_: None)
        retag(str(made.out), {"probe": 0.02})


def make_unsealed(made: Made) -> None:
    """Restore the state during labelling: not sealed, with one unit missing."""
    for name in ("manifest.json", "README.md"):
        (made.out / name).unlink()
    for name in ("data", "ledger", "generations"):
        shutil.rmtree(made.out / name)
    for path in (made.out / "units/0001/00001").glob("00000003.*"):
        path.unlink()
    (made.out / "units/0001/00001.parquet").unlink()


STATES = {
    "sealed": lambda made: None,
    "unmoved": lambda made: leave_staged(made, 4),
    "unswapped": leave_unswapped,
    "untidy": keep_old_generation,
    "unsealed": make_unsealed,
    "unsealed-unmoved": lambda made: (make_unsealed(made), leave_staged(made, 4)),
    "unswapped-unmoved": lambda made: (leave_unswapped(made), leave_staged(made, 4)),
}


def resume(made: Made) -> None:
    """Resume as the same `phf label` command does once it has found its job unchanged."""
    reporter = PlainReporter(io.StringIO())
    job = load_job(made.storage)
    resolved = resolve_layer(job, 1, EXECUTION)
    Run(job, Epoch.claim(made.storage), RunContext(reporter)).finish([1], label=[resolved])


@pytest.mark.slow
@given(
    litter=st.sets(st.sampled_from(LITTER)),
    state=st.sampled_from(sorted(STATES)),
    listed=st.booleans(),
)
@settings(max_examples=10, suppress_health_check=list(HealthCheck), database=None)
def test_gc_removes_all_litter_and_leaves_the_dataset_unchanged(sealed, tmp_path_factory, litter, state, listed):
    folder = tmp_path_factory.mktemp("case")
    with pytest.MonkeyPatch.context() as patch:
        plain = sealed.copy(folder / "plain", patch)
        STATES[state](plain)
        resume(plain)
        retag(str(plain.out), {"probe": "p75"})

        made = sealed.copy(folder / "made", patch)
        STATES[state](made)
        if state.startswith("unsealed"):
            # Without a manifest, nothing is known to be unneeded in these folders.
            litter = {path for path in litter if not path.startswith(("data/", "ledger/"))}
        if "units/0001/00003/00000006.json" in litter:
            # With a lost plan, a record is not litter; see below.
            litter = litter - {path for path in litter if path.startswith("job/plan")}
        for path in litter:
            add_orphan(made, path)
        records = bytes_below(made.out, "units") | bytes_below(made.out, "generations")
        if listed:
            before = bytes_below(made.out, "")
            found = collect(str(made.out)).orphans
            assert bytes_below(made.out, "") == before
            for path in litter:
                assert any(path.startswith(each.path) for each in found)
        collect(str(made.out), delete=True)
        gone = set(litter)
        for path in gone:
            assert not (made.out / path).exists()
        committed = {name for name in records if name.startswith("units/") and name not in gone}
        assert committed <= set(bytes_below(made.out, "units"))
        resume(made)
        retag(str(made.out), {"probe": "p75"})
        assert verify(str(made.out)).problems == []
        assert made.data() == plain.data()
        assert bytes_below(made.out, "ledger") == bytes_below(plain.out, "ledger")
        assert made.scored() == plain.scored()
    shutil.rmtree(folder)


@pytest.mark.parametrize("state", [each for each in STATES if each not in ("unsealed", "unsealed-unmoved")])
def test_committed_work_is_finished_first(made, state):
    STATES[state](made)
    collected = collect(str(made.out), delete=True)
    assert bool(collected.finished) == (state not in ("sealed", "untidy"))
    assert verify(str(made.out)).problems == []
    assert list(made.storage.list("staging")) == []
    assert collect(str(made.out)).orphans == []


def test_units_of_a_lost_plan_are_kept(made):
    plan = json.loads((made.out / "job/plan/0001.json").read_text())
    add_orphan(made, "units/0001/00003/00000006.json")
    add_orphan(made, f"job/plan/{plan['units']['path'][9:-8][::-1]}.parquet")
    assert collect(str(made.out), delete=True).orphans == []


def test_a_layer_whose_record_is_lost_is_kept(made):
    shutil.copytree(made.out / "units/0001", made.out / "units/0002")
    for record in (made.out / "units/0002").glob("*/*.json"):
        record.write_text(record.read_text()[:-1])
    before = bytes_below(made.out, "units")
    collect(str(made.out), delete=True)
    assert bytes_below(made.out, "units") == before


def test_files_that_a_damaged_record_may_name_are_kept(made):
    record = made.out / "units/0001/00002/00000004.json"
    record.write_text(record.read_text()[:-9])
    before = bytes_below(made.out, "units")
    assert collect(str(made.out), delete=True).orphans == []
    record.unlink()  # the unit is sealed: without their record, its parts are damaged, not litter
    assert collect(str(made.out), delete=True).orphans == []
    assert bytes_below(made.out, "units") == {
        name: data for name, data in before.items() if name != "units/0001/00002/00000004.json"
    }


@pytest.mark.parametrize("name", ["00002/00000004.json", "00000/00000001.json"])
def test_a_record_that_names_a_file_elsewhere_is_reported_and_nothing_is_removed(made, name):
    record = made.out / "units/0001" / name
    litter = add_orphan(made, LITTER[0])
    content = json.loads(record.read_text())
    content.pop("crc32")
    content["parts"][0]["path"] = "../precious"
    record.write_text(json.dumps(content))
    found = rf"{name} is damaged: parts\.0\.path: '\.\./precious' is not a plain relative path.*phf repair"
    for delete in (False, True):
        with pytest.raises(DamagedError, match=found):
            collect(str(made.out), delete=delete)
    assert (made.out / litter).is_file()


def test_a_staged_file_is_not_mistaken_for_a_part_that_is_in_place(made):
    # A run of several layers stages the second layer's part at this path after the first is committed.
    part = UnitStore(made.storage).read(3).parts[0]
    before = bytes_below(made.out, "units")
    add_orphan(made, part.staged)
    retag(str(made.out), {"probe": 0.03})
    assert bytes_below(made.out, "units") == before
    assert not (made.out / part.staged).exists()
    add_orphan(made, part.staged)
    collect(str(made.out), delete=True)
    assert bytes_below(made.out, "units") == before
    assert not (made.out / part.staged).exists()


def fake_driver(made: Made, **changes: object) -> int:
    """Write the figures of a running driver; return its epoch."""
    epoch = Epoch.claim(made.storage)
    status = json.loads(made.storage.read(PROGRESS))
    status |= {"state": "labelling", "written": datetime.now(UTC).isoformat(), "epoch": epoch.number, **changes}
    made.storage.put(PROGRESS, json.dumps(status).encode())
    return epoch.number


def test_a_running_driver_is_not_disturbed(made):
    leave_staged(made, 4)
    number = fake_driver(made)
    for path in LITTER:
        add_orphan(made, path)
    add_orphan(made, f"staging/{number:08d}/00000008.cpu.0.parquet")
    before = bytes_below(made.out, "")
    collected = collect(str(made.out), delete=True)
    assert collected.driver is not None
    after = bytes_below(made.out, "")
    gone = {name for name in before if name not in after}
    assert gone == {path for path in LITTER if path.startswith("staging/00000001/")}
    assert newest_epoch(made.storage) == number
    assert all(each.staged in after for each in UnitStore(made.storage).read(4).parts)


@pytest.mark.parametrize("changes", [{"state": "stopped"}, {"written": "2020-01-01T00:00:00Z"}])
def test_a_silent_or_finished_driver_does_not_count_as_running(made, changes):
    number = fake_driver(made, **changes)
    add_orphan(made, f"staging/{number:08d}/00000008.cpu.0.parquet")
    assert [each.path for each in collect(str(made.out), delete=True).orphans] == [f"staging/{number:08d}/"]
    assert newest_epoch(made.storage) == number + 1


def test_a_recent_temporary_file_is_kept(made):
    add_orphan(made, "units/.x.0123456789abcdef.tmp", age_s=10)
    assert collect(str(made.out), delete=True).orphans == []


def test_a_run_that_begins_during_gc_loses_nothing(made, monkeypatch):
    path = add_orphan(made, "units/0001/00002/00000004.old.parquet")
    found = gc_module.find_remains

    def then_begin(storage, **options):
        remains = found(storage, **options)
        Epoch.claim(storage)
        return remains

    monkeypatch.setattr(gc_module, "find_remains", then_begin)
    with pytest.raises(StoppedError):
        collect(str(made.out), delete=True)
    assert (made.out / path).exists()


def test_a_part_that_is_committed_during_gc_stays(made, monkeypatch):
    record = made.out / "units/0001/00002/00000004.json"
    make_unsealed(made)
    content = record.read_bytes()
    record.unlink()
    found = gc_module.find_remains

    def then_commit(storage, **options):
        remains = found(storage, **options)
        assert len(remains.orphans) == 2
        record.write_bytes(content)
        return remains

    monkeypatch.setattr(gc_module, "find_remains", then_commit)
    before = bytes_below(made.out, "units")
    collect(str(made.out), delete=True)
    assert bytes_below(made.out, "units") == {**before, "units/0001/00002/00000004.json": content}


def test_a_folder_that_is_not_an_output_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_text("")
    with pytest.raises(UserError, match="is not a labelled dataset"):
        collect(str(tmp_path), delete=True)
    with pytest.raises(UserError, match="There is nothing at"):
        collect(str(tmp_path / "none"))


def test_the_command_lists_and_removes(made):
    add_orphan(made, "staging/00000001/00000007.cpu.3.parquet")
    add_orphan(made, "data/0007/part-00000.parquet")
    result = CliRunner().invoke(app, ["gc", str(made.out)])
    assert result.exit_code == 0
    assert "data/0007/" in result.stdout
    assert "2 files, 34 bytes: not needed" in result.stdout
    assert (made.out / "data/0007/part-00000.parquet").exists()
    as_json = CliRunner().invoke(app, ["gc", str(made.out), "--delete", "--json"])
    facts = json.loads(as_json.stdout)
    assert (facts["removed"], facts["files"], facts["bytes"]) == (True, 2, 34)
    assert not (made.out / "data/0007/part-00000.parquet").exists()
    assert "contains nothing that is not needed" in CliRunner().invoke(app, ["gc", str(made.out)]).stdout
    assert len(list(made.out.glob("units/0001/*/*.json"))) == UNITS
