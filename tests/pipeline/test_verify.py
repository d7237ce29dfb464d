import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from phf import app
from pipeline.checking.verify import verify
from pipeline.corpus.records import Quarantined
from pipeline.dataset import open_dataset
from pipeline.dataset.manifest import DamagedError
from pipeline.sealing.generations import read_generation
from pipeline.storage import Storage
from scorers.errors import UserError
from tests.datasets import SOURCE, make_dataset, write_parquet
from tests.pipeline.committed import commit_units

ROWS = [
    {
        "text": f"Das ist Satz {n}. Noch einer — mit «Zeichen»! Und der letzte",
        "toxicity": [n / 60, n / 30, 0.25],
        "pii": [0.0, 0.5, n / 60] if n % 3 else None,
    }
    for n in range(30)
]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """A sealed dataset of two shards, with an empty text, nulls and quarantine."""
    units = [ROWS[:7], [*ROWS[7:20], {"text": "", "toxicity": [], "pii": []}], ROWS[20:]]
    gone = {1: [Quarantined(SOURCE, 9, "not-json")], 2: [Quarantined(SOURCE, 32, "deadline")]}
    cut = [Quarantined(SOURCE, 99, "truncated-source")]
    labelled = commit_units(
        tmp_path_factory.mktemp("sealed") / "out",
        units,
        ["toxicity", "pii"],
        thresholds={"pii": 0},
        quarantined=gone,
        cut=cut,
        shard_size=4_000,
    )
    labelled.write_job()
    manifest = labelled.seal()
    assert len(manifest.shards) == 2
    return labelled.folder


@pytest.fixture
def dataset(sealed, tmp_path):
    return Path(shutil.copytree(sealed, tmp_path / "out"))


SHARD = "data/0001/part-00000.parquet"
UNITS = "ledger/0001/units-00000.parquet"
QUARANTINE = "ledger/0001/quarantine-00000.parquet"


def problems(folder):
    return [str(problem) for problem in verify(str(folder)).problems]


def reforge(folder, path=SHARD, change=None, schema=None):
    """Rewrite a Parquet file with other rows, and every record of its hash too: only its content can betray it."""
    table = pq.read_table(folder / path)
    rows = table.to_pylist()
    change(rows)
    table = pa.Table.from_pylist(rows, schema=schema or table.schema)
    file = write_parquet(folder, path, table, table.schema)
    for name in ("manifest.json", "generations/0001.json"):
        record = json.loads((folder / name).read_text())
        record.pop("crc32", None)
        manifest = record.get("manifest", record)
        for entry in [*manifest["shards"], *manifest["ledger"]["segments"], *manifest["ledger"]["quarantine"]]:
            if entry["path"] == path:
                entry.update(size=file.size, sha256=file.sha256)
        (folder / name).write_text(json.dumps(record))


def edit(folder, *, sealed_too=False, **changes):
    for name in ["manifest.json", *(["generations/0001.json"] if sealed_too else [])]:
        record = json.loads((folder / name).read_text())
        record.pop("crc32", None)
        manifest = record.get("manifest", record)
        for path, value in changes.items():
            *parents, last = path.split("__")
            target = manifest
            for parent in parents:
                target = target[int(parent)] if isinstance(target, list) else target[parent]
            target[last] = value
        (folder / name).write_text(json.dumps(record))


def test_a_sealed_dataset_is_whole(sealed):
    report = verify(str(sealed))
    assert report.ok
    facts = report.to_dict()
    assert (facts["documents"], facts["records"], facts["quarantined"], facts["shards"]) == (31, 33, 2, 2)


def test_a_copy_of_the_dataset_alone_is_whole_too(dataset):
    for name in ("units", "job", "generations", "staging"):
        shutil.rmtree(dataset / name, ignore_errors=True)
    assert problems(dataset) == []


def test_the_bar_reaches_the_end(sealed):
    told = []
    verify(str(sealed), progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0


def test_every_flipped_byte_of_a_shard_is_noticed(dataset):
    path = dataset / SHARD
    content = path.read_bytes()
    for position in range(0, len(content), max(1, len(content) // 150)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        assert f"{SHARD}: its sha256 is not the one in manifest.json" in problems(dataset)


def test_a_flipped_bit_in_a_page_is_named_by_its_checksum(dataset):
    path = dataset / SHARD
    with pq.ParquetFile(path) as parquet:
        column = next(
            parquet.metadata.row_group(0).column(index)
            for index in range(parquet.metadata.num_columns)
            if parquet.metadata.row_group(0).column(index).path_in_schema == "text"
        )
        position = column.data_page_offset + column.total_compressed_size - 5
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)
    found = problems(dataset)
    assert found[0] == f"{SHARD}: its sha256 is not the one in manifest.json"
    assert found[1].startswith(f"{SHARD}: row group 0, column text: ")
    assert "CRC checksum verification failed" in found[1]
    # Readers notice it as they read, without any hash.
    with pytest.raises(DamagedError, match=r"part-00000\.parquet is damaged: .*checksum"):
        list(open_dataset(str(dataset)).read_batches())


@pytest.mark.parametrize("keep", [0, 3, -1, -100])
def test_a_truncated_shard_is_named(dataset, keep):
    path = dataset / SHARD
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    found = problems(dataset)
    assert f"{SHARD}: has {len(content[:keep]):,} bytes, not {len(content):,}" in found
    assert any(each.startswith(f"{SHARD}: cannot be read as Parquet") for each in found)
    with pytest.raises(DamagedError, match=r"part-00000\.parquet is damaged: it has"):
        open_dataset(str(dataset))


@pytest.mark.parametrize("path", [SHARD, UNITS, QUARANTINE])
def test_a_missing_file_is_named_and_hides_nothing(dataset, path):
    (dataset / path).unlink()
    (dataset / "README.md").unlink()
    assert problems(dataset) == [
        "README.md: the data card is missing; `datasets.load_dataset` finds the shards by it",
        f"{path}: is missing",
    ]


@pytest.mark.parametrize("path", ["data/0001/part-00007.parquet", "data/0002/part-00000.parquet", "ledger/stray.txt"])
def test_a_file_that_is_not_listed_is_named(dataset, path):
    (dataset / path).parent.mkdir(exist_ok=True)
    shutil.copy(dataset / SHARD, dataset / path)
    assert problems(dataset) == [f"{path}: manifest.json does not list it"]


def test_swapped_shards_are_named(dataset):
    one, other = dataset / SHARD, dataset / "data/0001/part-00001.parquet"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    found = "\n".join(problems(dataset))
    assert f"{SHARD}: has " in found
    assert "part-00001.parquet: the record is out of the order of the inputs" in found


def change_text(rows):
    rows[3]["text"] += "!"


def shorten_text(rows):
    rows[3]["text"] = rows[3]["text"][:-1]


def drop_an_end(rows):
    rows[3]["ends"] = rows[3]["ends"][:-1]


def repeat_an_end(rows):
    rows[3]["ends"] = [rows[3]["ends"][0], *rows[3]["ends"][1:][:1], rows[3]["ends"][1]]


def start_at_zero(rows):
    rows[3]["ends"] = [0, *rows[3]["ends"][1:]]


def null_end(rows):
    rows[3]["ends"] = [None, *rows[3]["ends"][1:]]


def no_ends(rows):
    rows[3]["ends"] = []


@pytest.mark.parametrize(
    "change", [change_text, shorten_text, drop_an_end, repeat_an_end, start_at_zero, null_end, no_ends]
)
def test_ends_that_lose_or_repeat_text_are_named(dataset, change):
    reforge(dataset, change=change)
    what = "`ends` do not cut `text` into sentences without rest (1 row, the first is corpus.jsonl#3)"
    assert f"{SHARD}: {what}" in problems(dataset)


def test_a_text_that_keeps_its_length_in_bytes_betrays_itself_nowhere_but_in_the_inputs_or_the_hash(dataset):
    def change(rows):
        rows[3]["text"] = rows[3]["text"].replace("Satz", "Sutz")

    reforge(dataset, change=change)
    assert problems(dataset) == []


def test_a_text_of_other_bytes_is_named_by_its_unit(dataset):
    def change(rows):
        rows[3]["text"] = rows[3]["text"].replace("Satz", "Sätz")

    reforge(dataset, change=change)
    (found,) = problems(dataset)
    assert found.startswith("ledger: the rows of 1 unit have another number of bytes_text than it says")
    assert "unit 00000000" in found


def swap_tags(rows):
    rows[4]["toxicity_aligned"] = [not tag for tag in rows[4]["toxicity_aligned"]]


def drop_tags(rows):
    rows[4]["toxicity_aligned"] = None


def shorten_tags(rows):
    rows[4]["toxicity_aligned"] = rows[4]["toxicity_aligned"][:-1]


def raise_score(rows):
    rows[4]["toxicity"] = [9.0] * 3


@pytest.mark.parametrize("change", [swap_tags, drop_tags, shorten_tags, raise_score])
def test_tags_that_are_not_the_scores_against_the_threshold_are_named(dataset, change):
    reforge(dataset, change=change)
    assert any(
        each.startswith(f"{SHARD}: `toxicity_aligned` is not `toxicity` <= 0.25 (1 row, the first is corpus.jsonl#4)")
        for each in problems(dataset)
    )


def test_another_threshold_is_named_in_every_row_that_it_concerns_once(dataset):
    edit(dataset, sealed_too=True, thresholds__toxicity__value=0.0)
    found = [each for each in problems(dataset) if "`toxicity_aligned` is not `toxicity` <= 0 (" in each]
    assert len(found) == 2  # one a shard


@pytest.mark.parametrize("score", [-0.5, float("nan"), float("inf"), None])
def test_what_is_no_score_is_named(dataset, score):
    def change(rows):
        rows[5]["toxicity"] = [score, *rows[5]["toxicity"][1:]]

    reforge(dataset, change=change)
    what = "`toxicity` holds scores that are negative, NaN, infinite or null (1 row, the first is corpus.jsonl#5)"
    assert f"{SHARD}: {what}" in problems(dataset)


def test_a_missing_score_is_named(dataset):
    def change(rows):
        rows[5]["toxicity"] = rows[5]["toxicity"][1:]
        rows[5]["toxicity_aligned"] = rows[5]["toxicity_aligned"][1:]

    reforge(dataset, change=change)
    assert f"{SHARD}: `toxicity` has not one score a sentence (1 row, the first is corpus.jsonl#5)" in problems(dataset)


def test_a_repeated_row_is_named(dataset):
    reforge(dataset, change=lambda rows: rows.insert(2, dict(rows[1])))
    found = problems(dataset)
    assert f"{SHARD}: the record stands twice (1 row, the first is corpus.jsonl#1)" in found
    assert any(each.startswith(f"{SHARD}: has ") and " rows, not " in each for each in found)


def test_a_row_that_is_repeated_later_or_moved_is_named(dataset):
    reforge(dataset, change=lambda rows: rows.append(dict(rows[1])))
    what = "the record is out of the order of the inputs, or stands twice (1 row, the first is corpus.jsonl#1)"
    assert f"{SHARD}: {what}" in problems(dataset)


def test_a_lost_row_is_named(dataset):
    reforge(dataset, change=lambda rows: rows.pop(6))
    found = problems(dataset)
    assert any(each.startswith(f"{SHARD}: has ") and " rows, not " in each for each in found)
    assert "ledger: the units have 31 rows, but the shards hold 30" in found


def test_a_row_of_another_source_is_named(dataset):
    reforge(dataset, change=lambda rows: rows[2].update(source="elsewhere.jsonl"))
    what = "its source is not among the inputs (1 row, the first is elsewhere.jsonl#2)"
    assert f"{SHARD}: {what}" in problems(dataset)


def test_a_record_that_is_labelled_and_quarantined_is_named(dataset):
    reforge(dataset, change=lambda rows: rows[8].update(position=9))
    what = "the record is also in quarantine (1 row, the first is corpus.jsonl#9)"
    assert f"{SHARD}: {what}" in problems(dataset)


def test_other_columns_are_named(dataset):
    schema = pq.read_schema(dataset / SHARD)
    schema = schema.set(2, pa.field("position", pa.int32(), nullable=False))
    reforge(dataset, change=lambda rows: None, schema=schema)
    assert problems(dataset) == [f"{SHARD}: its columns are not those of the manifest"]


def test_a_text_that_is_no_utf8_is_named(dataset):
    table = pq.read_table(dataset / SHARD)
    text = pa.array([b"\xff\xfe"] * table.num_rows, pa.large_binary()).view(pa.large_string())
    table = table.set_column(3, table.schema.field("text"), text)
    write_parquet(dataset, SHARD, table, table.schema)
    found = "\n".join(problems(dataset))
    assert f"{SHARD}: row group 0: " in found
    assert "UTF8" in found


def test_a_unit_that_does_not_add_up_is_named(dataset):
    reforge(dataset, UNITS, lambda units: units[1].update(records=99))
    found = problems(dataset)
    assert "ledger: unit 00000001 does not add up: 99 records are not 13 labelled + 1 empty + 1 quarantined" in found
    assert "ledger: its units have 117 records, but the manifest says 33" in found


def test_rows_that_moved_between_units_are_named(dataset):
    def change(units):
        units[0]["labelled"] -= 1
        units[0]["records"] -= 1
        units[1]["labelled"] += 1
        units[1]["records"] += 1

    reforge(dataset, UNITS, change)
    found = "\n".join(problems(dataset))
    assert (
        "ledger: the rows of 2 units have another number of sentences than it says; the first is unit 00000000" in found
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda entries: entries.pop(0),
            "its quarantine has 0 records with the reason not-json, but the manifest says 1",
        ),
        (lambda entries: entries[0].update(reason="slow"), "its quarantine has 1 records with the reason slow"),
        (lambda entries: entries[0].update(unit=2), "unit 00000001 has 1 quarantined records, but 0 references"),
        (lambda entries: entries.pop(), "its quarantine has 0 sources that end early, but the manifest says 1"),
    ],
)
def test_quarantine_that_does_not_add_up_is_named(dataset, change, named):
    reforge(dataset, QUARANTINE, change)
    assert any(each.startswith(f"ledger: {named}") for each in problems(dataset))


def test_a_damaged_ledger_is_named(dataset):
    path = dataset / UNITS
    path.write_bytes(path.read_bytes()[:-20])
    found = problems(dataset)
    assert any(each.startswith(f"{UNITS}: has ") for each in found)
    assert any(each.startswith(f"{UNITS}: cannot be read as Parquet") for each in found)


def test_an_edited_manifest_is_named_with_what_was_edited(dataset):
    edit(dataset, thresholds__toxicity__spec="p90", config__text_field="body")
    assert problems(dataset) == [
        "manifest.json: is not the one that was sealed (generations/0001.json): config.text_field, "
        "thresholds.toxicity.spec differ"
    ]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ledger__labelled": 7}, "33 records are not 7 labelled + 1 empty + 2 quarantined"),
        ({"ledger__labelled": 7}, "the shards hold 31 rows, not 7 labelled + 1 empty"),
        ({"sentences": 1}, "the shards do not hold 1 sentences"),
        ({"sources__0__records": 1}, "the sources do not hold 33 records"),
        ({"shards__0__path": "elsewhere/part.parquet"}, "a shard is not in data/0001"),
        ({"thresholds": {}}, "the columns of its scorers and its thresholds differ"),
    ],
)
def test_a_manifest_that_does_not_add_up_is_named(dataset, changes, named):
    edit(dataset, sealed_too=True, **changes)
    assert f"manifest.json: does not add up: {named}" in problems(dataset)


def test_counts_of_tags_that_are_not_those_of_the_rows_are_named(dataset):
    edit(dataset, sealed_too=True, thresholds__pii__aligned=1)
    (found,) = problems(dataset)
    assert found.startswith("manifest.json: says that by pii 1 of ")


@pytest.mark.parametrize("content", ["", "{", '{"schema_version": 1}', "[]"])
def test_a_manifest_that_is_none_is_named(dataset, content):
    (dataset / "manifest.json").write_text(content)
    (found,) = problems(dataset)
    assert "manifest.json is damaged at" in found
    assert "phf repair" in found


def test_a_lost_manifest_of_a_sealed_dataset_is_damage(dataset):
    (dataset / "manifest.json").unlink()
    assert problems(dataset) == ["manifest.json: is missing, though generation 1 is sealed"]


def test_a_manifest_that_is_not_of_the_newest_generation_is_named(dataset):
    shutil.copy(dataset / "generations/0001.json", dataset / "generations/0002.json")
    (found,) = problems(dataset)
    assert found.startswith("manifest.json: is generation 1, but 2 is sealed")


def test_a_damaged_record_of_the_generation_is_named(dataset):
    (dataset / "generations/0001.json").write_text("{}")
    (found,) = problems(dataset)
    assert found.startswith("generations/0001.json: ")
    with pytest.raises(DamagedError, match=r"generations/0001\.json is damaged\. `phf repair"):
        read_generation(Storage.open(str(dataset)), 1)


def test_a_card_that_leads_elsewhere_is_named(dataset):
    card = dataset / "README.md"
    card.write_text(card.read_text().replace("data/0001", "data/0007"))
    (found,) = problems(dataset)
    assert found.startswith("README.md: the data card does not name the current generation (path: data/0001/*.parquet)")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "There is nothing at"),
        (lambda folder: (folder / "units").mkdir(parents=True), "is incomplete: labelling has not finished"),
        (lambda folder: (folder / "photos").mkdir(parents=True), "is no labelled dataset: it has no manifest.json"),
    ],
)
def test_what_is_no_dataset_is_refused(tmp_path, prepare, message):
    prepare(tmp_path / "out")
    if (tmp_path / "out/units").is_dir():
        (tmp_path / "out/units/notes.json").write_text("{}")
    if (tmp_path / "out/photos").is_dir():
        (tmp_path / "out/photos/cat.jpg").write_text("")
    for refuse in (verify, open_dataset):
        with pytest.raises(UserError, match=message):
            refuse(str(tmp_path / "out"))


def test_another_schema_version_is_refused(dataset):
    edit(dataset, schema_version=2)
    with pytest.raises(UserError, match="schema version 2, but this phf reads version 1"):
        verify(str(dataset))


def test_the_command_exits_with_0_and_says_what_is_proven(sealed):
    result = CliRunner().invoke(app, ["verify", str(sealed)])
    assert result.exit_code == 0
    assert "is whole" in result.output
    assert "31 documents" in result.output


def test_the_command_exits_with_1_and_a_line_for_each_problem(dataset):
    (dataset / SHARD).unlink()
    (dataset / "README.md").unlink()
    result = CliRunner().invoke(app, ["verify", str(dataset)])
    assert result.exit_code == 1
    assert "is not whole: 2 problems" in result.output
    assert f"{SHARD}: is missing" in result.output
    as_json = CliRunner().invoke(app, ["verify", "--json", str(dataset)])
    assert as_json.exit_code == 1
    facts = json.loads(as_json.stdout)
    assert facts["ok"] is False
    assert {"path": SHARD, "what": "is missing", "stray": False} in facts["problems"]


def test_the_command_exits_with_2_where_there_is_no_dataset(tmp_path):
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "nothing")])
    assert result.exit_code == 2
    assert "There is nothing at" in result.stderr


def test_the_scored_units_are_checked_unless_they_are_left_out(dataset):
    part = dataset / "units/0001/00000/00000001.cpu.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    (dataset / "units/0001/00000/00000002.json").unlink()
    (dataset / "job/config.json").write_text("{}")
    report = verify(str(dataset))
    assert {problem.path for problem in report.problems} == {
        "job/config.json",
        "units/0001/00000/00000001.cpu.parquet",
        "units/0001/00000/00000002.json",
    }
    assert "phf repair" in str(report.remedy)
    assert verify(str(dataset), units=False).problems == []
    assert CliRunner().invoke(app, ["verify", str(dataset), "--no-units"]).exit_code == 0


def test_what_no_record_names_is_named_with_its_own_remedy(dataset):
    (dataset / "units/0001/00000/00000001.gpu.parquet").write_bytes(b"")
    report = verify(str(dataset))
    what = "the unit's commit record does not name it"
    assert [str(each) for each in report.problems] == [f"units/0001/00000/00000001.gpu.parquet: {what}"]
    assert "phf gc" in str(report.remedy)


def test_the_remedy_of_a_copy_is_another_copy(dataset):
    shutil.rmtree(dataset / "units")
    (dataset / SHARD).unlink()
    assert verify(str(dataset)).remedy == "Copy the dataset again from where it was labelled."


def test_a_problem_holds_no_text_of_the_corpus(dataset):
    reforge(dataset, change=change_text)
    assert not any("Satz" in each for each in problems(dataset))


def test_a_dataset_of_the_test_helper_is_whole(tmp_path):
    folder = make_dataset(
        tmp_path / "made",
        ["One. Two!", "", ("x = 1\r\ny = 2", "python"), "Three."],
        {"toxicity": lambda sentence: len(sentence) / 10, "pep8": lambda sentence: 0.0},
        {"pep8": 0},
        applies={"pep8": "python"},
        shard_rows=2,
        quarantined=[(1, "not-json")],
    )
    assert problems(folder) == []
    rows = [row for batch in open_dataset(str(folder)).read_batches() for row in batch.to_pylist()]
    assert [row["pep8"] for row in rows] == [None, None, [0.0, 0.0], None]
    assert np.concatenate([row["toxicity"] for row in rows]).dtype == np.float64
    assert (
        hashlib.sha256((folder / SHARD).read_bytes()).hexdigest() == open_dataset(str(folder)).manifest.shards[0].sha256
    )
