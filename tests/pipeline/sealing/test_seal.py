import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.records import Quarantined
from pipeline.dataset import open_dataset
from pipeline.job.epoch import Epoch
from pipeline.job.unit_store import UnitStore
from pipeline.sealing.generations import GENERATIONS, finish_seal, listed_files, sealed_manifest
from pipeline.storage.checked_json import to_checked
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage
from scorers.errors import IncompleteError, StoppedError, UserError
from tests.datasets import SOURCE
from tests.pipeline.committed import bytes_below, commit_units

UNITS = [
    [{"text": "One. Two.", "toxicity": [0.1, 0.4]}, {"text": "", "toxicity": []}],
    [{"text": "Three.", "toxicity": [0.3]}, {"text": "x = 1", "toxicity": None}, {"text": "Fünf!", "toxicity": [0.2]}],
]


def rows_of(folder):
    return [row for batch in open_dataset(str(folder)).read_batches() for row in batch.to_pylist()]


def test_the_rows_of_all_units_are_sealed_in_order_with_tags(tmp_path):
    labelled = commit_units(tmp_path / "out", UNITS, thresholds={"toxicity": 0.2})
    manifest = labelled.seal()
    rows = rows_of(labelled.folder)
    assert [row["text"] for row in rows] == ["One. Two.", "", "Three.", "x = 1", "Fünf!"]
    assert [row["toxicity_aligned"] for row in rows] == [[True, False], [], [False], None, [True]]
    assert [row["position"] for row in rows] == [0, 1, 2, 3, 4]
    assert open_dataset(str(labelled.folder)).manifest == manifest
    assert (manifest.rows, manifest.sentences, manifest.bytes_text) == (5, 5, len("One. Two.Three.x = 1Fünf!".encode()))
    threshold = manifest.thresholds["toxicity"]
    assert (threshold.value, threshold.spec, threshold.sentences, threshold.aligned) == (np.float32(0.2), "0.2", 4, 2)


def test_a_percentile_is_taken_over_all_sentences(tmp_path):
    manifest = commit_units(tmp_path / "out", UNITS).seal()
    threshold = manifest.thresholds["toxicity"]
    assert (threshold.value, threshold.spec, threshold.aligned) == (np.float32(0.2), "p50", 2)


def test_the_ledger_accounts_for_every_record_of_every_unit(tmp_path):
    gone = {1: [Quarantined(SOURCE, 2, "not-json", "at byte 3"), Quarantined(SOURCE, 4, "deadline", text="slow")]}
    cut = [Quarantined(SOURCE, 9, "truncated-source")]
    labelled = commit_units(tmp_path / "out", UNITS, quarantined=gone, cut=cut)
    ledger = labelled.seal().ledger
    assert (ledger.records, ledger.labelled, ledger.empty, ledger.sources_cut) == (7, 4, 1, 1)
    assert ledger.quarantined == {"deadline": 1, "not-json": 1}
    assert ledger.balanced
    units = pq.read_table(labelled.folder / ledger.segments[0].path).to_pylist()
    assert [unit["unit"] for unit in units] == [0, 1]
    assert units[1] == {
        "unit": 1,
        "records": 5,
        "labelled": 3,
        "empty": 0,
        "quarantined": [("deadline", 1), ("not-json", 1)],
        "sentences": 3,
        "bytes_text": len("Three.x = 1Fünf!".encode()),
    }
    references = pq.read_table(labelled.folder / ledger.quarantine[0].path).to_pylist()
    assert [(each["unit"], each["position"], each["reason"], each["text"]) for each in references] == [
        (1, 2, "not-json", None),
        (1, 4, "deadline", "slow"),
        (None, 9, "truncated-source", None),
    ]


def test_a_record_that_one_group_quarantined_is_in_no_row_and_in_no_percentile(tmp_path):
    units = [
        [
            {"text": "One.", "toxicity": [0.9], "pii": [0.5]},
            {"text": "Two.", "toxicity": [0.1], "pii": [0.0]},
            {"text": "Three.", "toxicity": [0.2], "pii": [0.25]},
        ]
    ]
    labelled = commit_units(
        tmp_path / "out",
        units,
        ["pii", "toxicity"],
        own_groups=["toxicity"],
        quarantined={0: [Quarantined(SOURCE, 0, "deadline")]},
        only_in_base=[0],
        thresholds={"pii": "p100", "toxicity": "p100"},
    )
    manifest = labelled.seal()
    assert [(row["text"], row["pii"], row["toxicity"]) for row in rows_of(labelled.folder)] == [
        ("Two.", [0.0], [np.float32(0.1)]),
        ("Three.", [0.25], [np.float32(0.2)]),
    ]
    assert {column: each.value for column, each in manifest.thresholds.items()} == {
        "pii": 0.25,
        "toxicity": np.float32(0.2),
    }


def test_a_corpus_without_rows_still_gives_a_dataset(tmp_path):
    manifest = commit_units(tmp_path / "out", [], ["toxicity"]).seal()
    assert (manifest.rows, len(manifest.shards), manifest.thresholds["toxicity"].value) == (0, 1, 0.0)
    assert rows_of(tmp_path / "out") == []


def test_the_bytes_do_not_depend_on_the_cut_into_units(tmp_path):
    rows = [{"text": f"Number {n}. And more!", "toxicity": [n / 50, n / 100]} for n in range(40)]
    one = commit_units(tmp_path / "one", [rows], shard_size=2_000).seal()
    many = commit_units(tmp_path / "many", [rows[:7], rows[7:8], [], rows[8:]], shard_size=2_000).seal()
    assert bytes_below(tmp_path / "one", "data") == bytes_below(tmp_path / "many", "data")
    assert one.shards == many.shards
    assert len(one.shards) > 1


def test_a_unit_that_is_not_committed_is_named(tmp_path):
    labelled = commit_units(tmp_path / "out", UNITS)
    (labelled.folder / "units/0001/00000/00000001.json").unlink()
    with pytest.raises(IncompleteError, match="unit 00000001 is not labelled"):
        labelled.seal()
    assert not (labelled.folder / GENERATIONS).exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_part_is_named_and_nothing_is_sealed(tmp_path, damage):
    labelled = commit_units(tmp_path / "out", UNITS, thresholds={"toxicity": 0.5})
    part = labelled.folder / "units/0001/00000/00000001.cpu.parquet"
    content = bytearray(part.read_bytes())
    content[40] ^= 1
    {"flip": lambda: part.write_bytes(content), "cut": lambda: part.write_bytes(content[:-9]), "delete": part.unlink}[
        damage
    ]()
    with pytest.raises(IncompleteError, match=r"units/0001/00000/00000001\.cpu\.parquet is damaged.*phf repair"):
        labelled.seal()
    assert not (labelled.folder / GENERATIONS).exists()


def test_a_unit_whose_records_do_not_add_up_is_refused(tmp_path):
    labelled = commit_units(tmp_path / "out", UNITS)
    store = UnitStore(labelled.epoch.storage)
    record = store.read(0).model_copy(update={"records": 3})
    labelled.epoch.storage.put(store.record_path(0), to_checked(record))
    with pytest.raises(
        IncompleteError, match=r"unit 00000000 does not add up: 3 records were read, but 2 are labelled"
    ):
        labelled.seal()


def test_a_threshold_for_another_column_is_refused_before_any_work(tmp_path):
    labelled = commit_units(tmp_path / "out", UNITS)
    with pytest.raises(UserError, match="threshold for 'pii'"):
        labelled.seal(thresholds={"pii": 0})
    assert not (labelled.folder / "staging").exists()


class Crash(Exception):
    pass


class CrashingStorage(LocalStorage):
    """Dies at the n-th durable step, either just before it takes effect or just after."""

    def __init__(self, root, steps, *, after):
        super().__init__(root)
        self.steps, self.after = steps, after

    def _step(self, act):
        self.steps -= 1
        if self.steps == 0 and not self.after:
            raise Crash
        result = act()
        if self.steps == 0:
            raise Crash
        return result

    def put_if_absent(self, path, data):
        return self._step(lambda: LocalStorage.put_if_absent(self, path, data))

    def put(self, path, data):
        return self._step(lambda: LocalStorage.put(self, path, data))

    def move(self, source, target):
        return self._step(lambda: LocalStorage.move(self, source, target))

    def delete(self, path):
        return self._step(lambda: LocalStorage.delete(self, path))

    def delete_folder(self, folder):
        return self._step(lambda: LocalStorage.delete_folder(self, folder))


@pytest.mark.parametrize("after", [False, True])
def test_a_seal_that_dies_at_any_step_is_finished_with_the_same_bytes(tmp_path, after):
    rows = [{"text": f"Number {n}.", "toxicity": [n / 50]} for n in range(20)]
    whole = commit_units(tmp_path / "whole", [rows], shard_size=400)
    expected = whole.seal()
    assert len(expected.shards) > 2
    for steps in range(1, 100):
        labelled = commit_units(tmp_path / f"{steps}", [rows], shard_size=400)
        dying = CrashingStorage(labelled.folder, steps, after=after)
        labelled.epoch = Epoch(dying, labelled.epoch.number)
        try:
            labelled.seal()
        except Crash:
            pass
        else:
            break
        labelled.epoch = Epoch.claim(open_storage(str(labelled.folder)))
        manifest = finish_seal(labelled.epoch) or labelled.seal()
        assert manifest.shards == expected.shards
        assert bytes_below(labelled.folder, "data") == bytes_below(whole.folder, "data")
        assert bytes_below(labelled.folder, "ledger") == bytes_below(whole.folder, "ledger")
        assert open_dataset(str(labelled.folder)).manifest == manifest
        assert (labelled.folder / "README.md").is_file()
    assert steps > 5


@pytest.mark.parametrize("after", [False, True])
def test_a_new_generation_is_swapped_in_or_the_old_one_stays_intact(tmp_path, after):
    for steps in range(1, 100):
        labelled = commit_units(tmp_path / f"{steps}", UNITS)
        labelled.seal()
        labelled.epoch = Epoch(CrashingStorage(labelled.folder, steps, after=after), labelled.epoch.number)
        try:
            labelled.seal(generation=2, thresholds={"toxicity": 0.1})
        except Crash:
            pass
        else:
            break
        # At every step, a reader finds one complete generation.
        assert open_dataset(str(labelled.folder)).manifest.generation in (1, 2)
        assert len(rows_of(labelled.folder)) == 5
        newest = finish_seal(Epoch.claim(open_storage(str(labelled.folder))))
        assert newest is not None
        assert sealed_manifest(open_storage(str(labelled.folder))) == newest
        assert open_dataset(str(labelled.folder)).manifest == newest
        data = sorted(path.name for path in (labelled.folder / "data").iterdir())
        assert data == [f"{newest.generation:04d}"]
        assert len(bytes_below(labelled.folder, "ledger")) == 1
    assert steps > 5


def test_a_driver_that_was_overtaken_commits_nothing(tmp_path):
    labelled = commit_units(tmp_path / "out", UNITS)
    Epoch.claim(open_storage(str(labelled.folder)))
    with pytest.raises(StoppedError):
        labelled.seal()
    assert not (labelled.folder / GENERATIONS).exists()


def test_two_different_seals_of_one_generation_do_not_mix(tmp_path):
    labelled = commit_units(tmp_path / "out", UNITS)
    first = labelled.seal()
    with pytest.raises(StoppedError, match=r"Another run has just sealed generation 1.*run the same command again"):
        labelled.seal(thresholds={"toxicity": 0.1})
    assert open_dataset(str(labelled.folder)).manifest == first


@pytest.mark.parametrize("content", [None, "{}", "changed"])
def test_a_lost_or_changed_manifest_is_restored(tmp_path, content):
    labelled = commit_units(tmp_path / "out", UNITS)
    manifest = labelled.seal()
    path = labelled.folder / "manifest.json"
    if content is None:
        path.unlink()
    else:
        path.write_text(path.read_text().replace("p50", "p51") if content == "changed" else content)
    assert sealed_manifest(labelled.epoch.storage) is None
    assert finish_seal(labelled.epoch) == manifest
    assert open_dataset(str(labelled.folder)).manifest == manifest


def test_a_lost_file_of_a_committed_generation_is_named(tmp_path):
    labelled = commit_units(tmp_path / "out", UNITS)
    manifest = labelled.seal()
    (labelled.folder / "manifest.json").unlink()
    (labelled.folder / listed_files(manifest)[0].path).unlink()
    with pytest.raises(IncompleteError, match=r"data/0001/part-00000\.parquet is missing"):
        finish_seal(labelled.epoch)


def test_a_folder_that_was_never_sealed_has_no_generation(tmp_path):
    labelled = commit_units(tmp_path / "out", UNITS)
    assert finish_seal(labelled.epoch) is None
    assert sealed_manifest(labelled.epoch.storage) is None


def test_sealing_reports_its_progress(tmp_path):
    steps = []
    commit_units(tmp_path / "out", UNITS).seal(progress=lambda *what: steps.append(what))
    assert steps == 2 * [("Counting scores", 1, 2), ("Counting scores", 2, 2)] + [("Sealing", 1, 2), ("Sealing", 2, 2)]
