"""Untrusted labelled datasets: no path in their files and no link in their folders does harm."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from phf import app
from pipeline.dataset import open_dataset
from pipeline.dataset.manifest import DamagedError
from pipeline.job.unit_records import SEGMENT_SCHEMA
from pipeline.job.unit_store import UnitStore
from tests.pipeline import upkept
from tests.pipeline.upkept import Made

VICTIM = "home/precious.parquet"
COMMANDS = {
    "retag": ("retag", "out", "--threshold", "probe=0.5"),
    "gc": ("gc", "out"),
    "gc --delete": ("gc", "out", "--delete"),
    "verify": ("verify", "out"),
    "repair": ("repair", "out"),
    "inspect": ("inspect", "out"),
    "status": ("status", "out"),
    "label": (
        *("label", "corpus", "--output", "out", "--scorer", "probe=probe", "--scorer", "gpu=gpu_probe"),
        *("--unit-size", str(upkept.UNIT_SIZE), "--shard-size", "1500", "--max-quarantined", "9"),
        *("--set", "execution.pools.gpu=cuda"),
    ),
    "export": ("export", "out", "--column", "probe", "--output", "exported.jsonl"),
}


@pytest.fixture(scope="module", autouse=True)
def _in_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        upkept.set_up(patch, tmp_path_factory.mktemp("packages") / "site")
        yield


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory, _in_process: None) -> Made:
    made = Made(tmp_path_factory.mktemp("sealed") / "made")
    made.folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        made.enter(patch)
        upkept.label(made, layers=1)
        (made.folder / "home").mkdir()
        (made.folder / VICTIM).write_text("precious")
    return made


@pytest.fixture
def made(sealed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    return sealed.copy(tmp_path / "made", monkeypatch)


def run(*words: str) -> tuple[int, str]:
    """Run a command; return its status and output. Fails on a crash or traceback."""
    ended = CliRunner().invoke(app, words)
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    assert "defect" not in ended.output, ended.output
    return ended.exit_code, ended.output


def state(folder: Path) -> dict[str, Any]:
    """The content of a folder: data and time of each file, and names of folders."""
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None
        for path in [folder, *sorted(folder.rglob("*"))]
    }


def paths_in(value: Any, key: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Keys of the strings in a JSON value that are paths of the dataset."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from paths_in(each, (*key, name))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from paths_in(each, (*key, number))
    elif isinstance(value, str) and key[-1] in ("path", "staged"):
        yield key


def every_path(out: Path) -> list[tuple[str, tuple[Any, ...]]]:
    """For each stored file, the keys of its paths; only two entries of each list."""
    return [
        (file.relative_to(out).as_posix(), key)
        for file in sorted(out.rglob("*.json"))
        if file.parent.name != "epochs"
        for key in paths_in(json.loads(file.read_text()))
        if all(part < 2 for part in key if isinstance(part, int))
    ]


def put_in(file: Path, key: tuple[Any, ...], path: str) -> None:
    """Write another path, without a checksum, as if the file were written by hand."""
    content = json.loads(file.read_text())
    content.pop("crc32", None)
    holder = content
    for part in key[:-1]:
        holder = holder[part]
    holder[key[-1]] = path
    file.write_text(json.dumps(content))


def undo(out: Path) -> None:
    """Restore the state of a driver that died after committing everything, before moving any part."""
    for file in (out / "units").rglob("*.json"):
        for part in json.loads(file.read_text())["parts"]:
            move(out / part["path"], out / part["staged"])
    record = json.loads((out / "generations/0001.json").read_text())
    ledger = record["manifest"]["ledger"]
    for each in (*record["manifest"]["shards"], *ledger["segments"], *ledger["quarantine"]):
        move(out / each["path"], out / record["staged"] / each["path"])
    (out / "manifest.json").unlink()


def move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


def hostile(folder: Path) -> list[str]:
    victim = folder / VICTIM
    return [
        str(victim),
        f"../{VICTIM}",
        f"data/../../{VICTIM}",
        f"./../{VICTIM}",
        f"data//../../{VICTIM}",
        "../home",
        "",
        ".",
        "data//part-00000.parquet",
        "./data/0001/part-00000.parquet",
        "C:\\x",
        "data\\x",
        "data/a\0b",
        "data/\x1b]0;x\a",
    ]


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_path_leaves_the_dataset(sealed: Made, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        folder = sealed.folder.with_name("mutant")
        shutil.rmtree(folder, ignore_errors=True)
        made = sealed.copy(folder, patch)
        file, key = data.draw(st.sampled_from(every_path(made.out)))
        path = data.draw(st.sampled_from(hostile(folder)))
        if file != "manifest.json" and data.draw(st.booleans()):
            undo(made.out)
        put_in(made.out / file, key, path)
        # This would be moved there if the path were followed.
        for staged in made.out.glob("staging/*"):
            source = Path(os.path.normpath(f"{staged}/{path.lstrip('/')}".replace("\0", "")))
            if source.is_relative_to(made.out) and not source.exists():
                source.parent.mkdir(parents=True, exist_ok=True)
                source.write_text("code of the dataset's author")
        before = state(folder / "home")
        for command in data.draw(st.permutations(["label", "retag", "repair", "gc --delete"])):
            run(*COMMANDS[command])
            assert state(folder / "home") == before
        known = ("corpus", "home", "out", "scored", "exported.jsonl")
        assert all(each.name.startswith(known) for each in folder.iterdir())


def test_verify_names_the_file_the_key_and_the_path(made: Made) -> None:
    named = set()
    for file, key in every_path(made.out):
        content = (made.out / file).read_bytes()
        put_in(made.out / file, key, "../\x1bx")
        status, printed = run("verify", "out")
        assert status == 1, (file, key)
        assert f"{'.'.join(map(str, key))}: '../\\x1bx' is not a plain relative path" in printed, (file, key, printed)
        assert file in printed
        named.add(file)
        (made.out / file).write_bytes(content)
    assert {name.partition("/")[0] for name in named} == {"generations", "job", "manifest.json", "units"}
    assert run("verify", "out")[0] == 0


def test_a_generation_that_names_a_file_elsewhere_moves_nothing(made: Made) -> None:
    record = json.loads((made.out / "generations/0001.json").read_text())
    record.pop("crc32")
    victim = str(made.folder / VICTIM)
    record["staged"] = "staging/x"
    record["manifest"]["ledger"]["segments"].append({"path": victim, "size": 3, "sha256": "0" * 64})
    (made.out / "generations/0001.json").write_text(json.dumps(record))
    staged = made.out / f"staging/x{victim}"
    staged.parent.mkdir(parents=True)
    staged.write_text("bad")
    before = state(made.folder / "home")
    for command, expected in {"retag": 2, "gc": 2, "gc --delete": 2, "verify": 1, "inspect": 0}.items():
        assert run(*COMMANDS[command])[0] == expected, command
        assert state(made.folder / "home") == before
    assert run("repair", "out")[0] == 0
    assert run("verify", "out")[0] == 0
    assert state(made.folder / "home") == before


def test_records_in_a_segment_are_not_trusted(made: Made) -> None:
    store = UnitStore(made.storage)
    file = made.out / store.segment_path(0)
    rows = pq.read_table(file).to_pylist()
    rows[0]["parts"][0]["path"] = "../home/precious.parquet"
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(file)), file)
    assert all(part.path.startswith("units/") for record in store.records(5) for part in record.parts)
    status, printed = run("verify", "out")
    assert status == 1
    assert "units/0001/00000.parquet" in printed
    assert run("repair", "out")[0] == 0


def places(out: Path) -> list[str]:
    """All files and folders of the dataset."""
    return [path.relative_to(out).as_posix() for path in sorted(out.rglob("*"))]


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_nothing_is_written_or_deleted_behind_a_link(sealed: Made, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        folder = sealed.folder.with_name("linked")
        shutil.rmtree(folder, ignore_errors=True)
        made = sealed.copy(folder, patch)
        (made.out / "staging" / "00000001" / "x").mkdir(parents=True)
        if data.draw(st.booleans()):
            undo(made.out)
        place = made.out / data.draw(st.sampled_from(places(made.out)))
        # Behind the link is the original content, so that following it would find nothing wrong.
        shutil.move(place, folder / "home" / place.name)
        place.symlink_to(folder / "home" / place.name)
        before = state(folder / "home")
        run(*COMMANDS[data.draw(st.sampled_from(sorted(COMMANDS)))])
        assert state(folder / "home") == before


@pytest.mark.parametrize("place", ["staging/00000001", "data/0000", "units/0001/00000/sub", "ledger/x", "job/plan/x"])
def test_a_link_is_reported_and_left(made: Made, place: str) -> None:
    link = made.out / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(made.folder / "home")
    before = state(made.folder / "home")
    for command, expected in {"gc": 0, "gc --delete": 0, "verify": 1}.items():
        status, printed = run(*COMMANDS[command])
        assert status == expected, command
        assert place in printed
        assert "is a link" in printed
        assert "[bold]" not in printed
        assert link.is_symlink()
        assert state(made.folder / "home") == before
    assert {"path": place} == {
        name: value
        for name, value in json.loads(run("gc", "out", "--json")[1])["irregular"][0].items()
        if name == "path"
    }


@pytest.mark.parametrize("place", ["staging", "units", "generations", "job", "data"])
def test_a_folder_of_the_output_that_is_a_link_is_refused_before_anything_is_written(made: Made, place: str) -> None:
    (made.out / "staging").mkdir(exist_ok=True)
    shutil.move(made.out / place, made.folder / "home" / place)
    (made.out / place).symlink_to(made.folder / "home" / place)
    before = state(made.folder)
    for command in ("retag", "repair", "label", "gc --delete"):
        status, printed = run(*COMMANDS[command])
        # A finished job is left alone.
        refused = status in (2, 4) and "is a link" in printed
        assert refused or "already labelled and sealed" in printed, (command, printed)
    assert state(made.folder) == before


def test_a_shard_that_is_a_link_is_never_read(made: Made) -> None:
    shard = next((made.out / "data" / "0001").iterdir())
    shutil.move(shard, made.folder / "home" / shard.name)
    shard.symlink_to(made.folder / "home" / shard.name)
    with pytest.raises(DamagedError, match=rf"{shard.name} is a link"):
        open_dataset(str(made.out))
    for command in ("inspect", "export"):
        status, printed = run(*COMMANDS[command])
        assert status == 2
        assert "is a link" in printed
    assert run("repair", "out")[0] == 0
    assert not shard.is_symlink()
    assert (made.folder / "home" / shard.name).is_file()


def test_a_dataset_whose_folder_is_a_link_works(made: Made) -> None:
    made.out.rename(made.folder / "elsewhere")
    made.out.symlink_to("elsewhere")
    for command in COMMANDS:
        assert run(*COMMANDS[command])[0] == 0, command


@pytest.mark.parametrize("target", ["home", "nowhere"])
def test_an_export_replaces_no_link(made: Made, target: str) -> None:
    (made.folder / "exported.jsonl").symlink_to(target)
    (made.folder / "folder").mkdir()
    (made.folder / "folder" / "train-00000.parquet").symlink_to(target)
    before = state(made.folder)
    for output in ("exported.jsonl", "folder"):
        status, printed = run("export", "out", "--column", "probe", "--output", output)
        assert status == 2
        assert "exists already" in printed
    assert state(made.folder) == before


@pytest.mark.parametrize("units", [-1, 10**15])
def test_an_impossible_number_of_units_is_damage(made: Made, units: int) -> None:
    for name in ("manifest.json", "generations/0001.json"):
        content = json.loads((made.out / name).read_text())
        content.pop("crc32", None)
        content.get("manifest", content)["ledger"]["units"] = units
        (made.out / name).write_text(json.dumps(content))
    (made.out / "units" / "99999999999" / "00000").mkdir(parents=True)
    (made.out / "units" / "99999999999" / "00000" / "00000000.json").write_text("{}")
    (made.out / "units" / "²²²²" / "³³³³³").mkdir(parents=True)
    (made.out / "job" / "epochs" / "²").touch()
    (made.out / "generations" / "0001x.json").touch()
    status, printed = run("verify", "out")
    assert status == 1
    assert "ledger.units" in printed
    for command in ("gc", "retag"):
        assert run(*COMMANDS[command])[0] == 2
    assert run("status", "out")[0] == 0


@pytest.mark.parametrize("column", ["../home/x", "x/y", "/x", "", "X"])
def test_a_column_name_cannot_be_a_path(made: Made, column: str) -> None:
    for name in ("manifest.json", "generations/0001.json", "job/config.json"):
        content = json.loads((made.out / name).read_text())
        content.pop("crc32", None)
        for holder in (content, content.get("manifest", {})):
            for key in ("scorers", "thresholds"):
                if "probe" in holder.get(key, {}):
                    holder[key][column] = holder[key].pop("probe")
        (made.out / name).write_text(json.dumps(content))
    with pytest.raises(DamagedError, match="is not a column name"):
        open_dataset(str(made.out))
    assert run("verify", "out")[0] == 1


def write_parquet(out: Path, file: Path, table: pa.Table) -> None:
    """Replace a file by another table, and update its size and hash in all files that name it."""
    before = file.read_bytes()
    pq.write_table(table, file, write_page_checksum=True)
    now = file.read_bytes()
    old, new = (hashlib.sha256(content).hexdigest() for content in (before, now))
    for each in out.rglob("*.json"):
        text = each.read_text()
        if old in text:
            content = re.sub(rf'("size":\s*){len(before)}\b', rf"\g<1>{len(now)}", text.replace(old, new))
            each.write_text(re.sub(r',\s*"crc32":\s*"[0-9a-f]{8}"(?=\s*\}\s*\Z)', "", content))


def others_of(table: pa.Table) -> Iterator[pa.Table]:
    """Malicious variants of a table: without a column, or with one of nulls, texts or other numbers."""
    for number, name in enumerate(table.column_names):
        yield table.drop_columns([name])
        for values in (pa.nulls(len(table)), pa.array(["x"] * len(table)), pa.array([-(2**62)] * len(table))):
            yield table.set_column(number, name, values)
    yield table.slice(0, 0)
    yield pa.table([table.column(0), *table.columns], [table.column_names[0], *table.column_names])


def test_a_plan_or_part_with_wrong_columns_is_damage(made: Made) -> None:
    plans = sorted((made.out / "job" / "plan").glob("*.parquet"))
    part = made.out / UnitStore(made.storage).part_path(0, "cpu")
    assert len(plans) == 2
    (made.out / UnitStore(made.storage).segment_path(0)).unlink(missing_ok=True)
    for file, command in [*((plan, "status") for plan in plans), (part, "retag")]:
        whole = {path: path.read_bytes() for path in (file, *made.out.rglob("*.json"))}
        for table in others_of(pq.read_table(file)):
            write_parquet(made.out, file, table)
            status, _ = run(*COMMANDS[command])
            assert status in (0, 2, 4), (file, table.schema)
        for path in made.out.rglob("*.json"):
            if path not in whole:
                path.unlink()
        for path, content in whole.items():
            path.write_bytes(content)
    write_parquet(made.out, part, pq.read_table(part).drop_columns(["text"]))
    status, printed = run(*COMMANDS["retag"])
    assert (status, "it lacks text" in printed) == (4, True), printed


def test_a_segment_with_wrong_columns_is_ignored(made: Made) -> None:
    _, before = run("status", "out", "--json")
    for table in (pa.table({"a": [1]}), SEGMENT_SCHEMA.empty_table()):
        pq.write_table(table, made.out / UnitStore(made.storage).segment_path(0))
        assert run(*COMMANDS["retag"])[0] in (0, 4)
        assert run(*COMMANDS["verify"])[0] == 1
    assert "records" in before


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        (("config", "thresholds"), None, "thresholds"),
        (("config", "shard_size"), "x", "shard_size"),
        (("config", "unit_size"), float("nan"), "config"),
        (("config", "execution"), {"trusted_sha256": ["0" * 64]}, "execution"),
        (("scorers", "probe", "options"), {"kind": "linear"}, "options"),
    ],
)
def test_an_invalid_job_configuration_is_damage(made: Made, key: tuple[str, ...], value: Any, named: str) -> None:
    file = made.out / "job" / "config.json"
    content = json.loads(file.read_text())
    content.pop("crc32")
    holder = content
    for part in key[:-1]:
        holder = holder[part]
    holder[key[-1]] = value
    file.write_text(json.dumps(content))
    status, printed = run(*COMMANDS["status"])
    assert status == 2
    assert "job/config.json is damaged" in printed
    assert named in printed


@pytest.mark.parametrize("values", ['"elapsed_s": 1e400', '"remaining_s": NaN', '"written": "2026-01-01T00:00:00"'])
def test_invalid_figures_are_not_shown(made: Made, values: str) -> None:
    file = made.out / "job" / "progress.json"
    text = file.read_text()
    file.write_text(f"{text.rstrip().removesuffix('}')}, {values}}}")
    status, printed = run("status", "out", "--json")
    assert (status, json.loads(printed)["run"]) == (0, None)
