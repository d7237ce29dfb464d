"""verify finds inconsistent units, quarantine, ledger, manifest and card."""

import shutil

import pytest

from pipeline.dataset.manifest import DamagedError
from pipeline.sealing.generations import read_generation
from pipeline.storage.open import open_storage
from tests.pipeline.verify.forging import QUARANTINE, UNITS, edit, problems, reforge


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
        "ledger: the rows of 2 units have a different number of sentences than it says; the first is unit 00000000"
        in found
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda entries: entries.pop(0),
            "its quarantine has 0 records with the reason not-json, but the manifest says 1",
        ),
        (lambda entries: entries[0].update(reason="slow"), "its quarantine has 1 record with the reason slow"),
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


def test_an_edited_manifest_is_named_with_the_edited_fields(dataset):
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


def test_tag_counts_that_differ_from_the_rows_are_named(dataset):
    edit(dataset, sealed_too=True, thresholds__pii__aligned=1)
    (found,) = problems(dataset)
    assert found.startswith("manifest.json: says that by pii 1 of ")


@pytest.mark.parametrize("content", ["", "{", '{"schema_version": 1}', "[]"])
def test_an_invalid_manifest_is_named(dataset, content):
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
    with pytest.raises(DamagedError, match=r"generations/0001\.json is damaged: .* Run `phf repair"):
        read_generation(open_storage(str(dataset)), 1)


def test_a_card_that_names_another_generation_is_named(dataset):
    card = dataset / "README.md"
    card.write_text(card.read_text().replace("data/0001", "data/0007"))
    (found,) = problems(dataset)
    assert found.startswith("README.md: the data card does not name the current generation (path: data/0001/*.parquet)")
