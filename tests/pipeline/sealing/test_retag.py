import json
import os

import numpy as np
import pytest
from typer.testing import CliRunner

from phf import app
from pipeline.checking.verify import verify
from pipeline.corpus.records import Quarantined
from pipeline.dataset import open_dataset
from pipeline.job.epoch import Epoch
from pipeline.job.record import load_job
from pipeline.labelling.prepare import refuse_other_settings
from pipeline.sealing.generations import GenerationRecord, generation_path
from pipeline.sealing.retag import retag
from pipeline.storage.open import open_storage
from scorers.errors import IncompleteError, UserError
from tests.datasets import SOURCE, make_dataset
from tests.pipeline.committed import bytes_below, commit_units

UNITS = [
    [
        {"text": f"Sentence {n}. Another!", "toxicity": [n / 20, n / 40], "pii": [0.0, n / 10]}
        for n in range(start, stop)
    ]
    for start, stop in ((0, 8), (8, 20))
]


@pytest.fixture
def labelled(tmp_path):
    """A sealed dataset with the folders of its job, as `phf label` leaves it."""
    made = commit_units(tmp_path / "out", UNITS, ["toxicity", "pii"], thresholds={"pii": 0}, shard_size=1_000)
    made.write_job()
    made.seal()
    return made


def rows_of(folder):
    return [row for batch in open_dataset(str(folder)).read_batches() for row in batch.to_pylist()]


def test_only_the_tags_of_the_named_columns_change(labelled):
    before = rows_of(labelled.folder)
    retagged = retag(str(labelled.folder), {"toxicity": 0.3})
    after = rows_of(labelled.folder)
    assert [row["toxicity_aligned"] for row in after] == [
        [score <= np.float32(0.3) for score in row["toxicity"]] for row in before
    ]
    for name in ("doc_id", "source", "position", "text", "meta", "ends", "toxicity", "pii", "pii_aligned"):
        assert [row[name] for row in after] == [row[name] for row in before]
    assert retagged.changed
    assert (retagged.before.generation, retagged.after.generation) == (1, 2)
    assert retagged.after.thresholds["pii"] == retagged.before.thresholds["pii"]
    assert verify(str(labelled.folder)).problems == []


def test_the_old_generation_is_deleted_and_the_card_names_the_new_one(labelled):
    retag(str(labelled.folder), {"toxicity": "p90"})
    assert [path.name for path in (labelled.folder / "data").iterdir()] == ["0002"]
    assert [path.name for path in (labelled.folder / "ledger").iterdir()] == ["0002"]
    assert [path.name for path in (labelled.folder / "generations").iterdir()] == ["0002.json"]
    assert not (labelled.folder / "staging").exists()
    assert "path: data/0002/*.parquet" in (labelled.folder / "README.md").read_text()


def test_the_bytes_equal_those_of_a_dataset_sealed_with_these_thresholds(labelled, tmp_path):
    retag(str(labelled.folder), {"toxicity": "p90", "pii": 0.5})
    other = commit_units(
        tmp_path / "other", UNITS, ["toxicity", "pii"], thresholds={"toxicity": "p90", "pii": 0.5}, shard_size=1_000
    )
    other.seal()
    assert list(bytes_below(labelled.folder, "data").values()) == list(bytes_below(other.folder, "data").values())


def test_retagging_back_gives_the_same_bytes(labelled):
    before = list(bytes_below(labelled.folder, "data").values())
    retag(str(labelled.folder), {"toxicity": 0.1})
    retag(str(labelled.folder), {"toxicity": "p50"})
    assert list(bytes_below(labelled.folder, "data").values()) == before


def test_the_same_thresholds_change_nothing(labelled):
    before = bytes_below(labelled.folder, "")
    retagged = retag(str(labelled.folder), {"toxicity": "p50", "pii": "0.0"})
    assert not retagged.changed
    assert bytes_below(labelled.folder, "") == before


def test_a_reader_works_until_the_swap_and_fails_clearly_after_it(labelled):
    dataset = open_dataset(str(labelled.folder))
    assert len(dataset.manifest.shards) > 2
    batches = dataset.read_batches()
    next(batches)
    retag(str(labelled.folder), {"toxicity": 0.3})
    with pytest.raises(UserError, match=r"retagged \(generation 2\) while generation 1 was being read\. Start again"):
        list(batches)
    assert len(rows_of(labelled.folder)) == 20


def test_the_commit_of_a_dead_run_is_finished_first(labelled):
    folder = str(labelled.folder)
    retag(folder, {"toxicity": 0.3})
    # The state after a crash between committing generation 3 and moving its files.
    record = labelled.folder / generation_path(2)
    written = json.loads(record.read_text().replace("/0002/", "/0003/").replace('"generation": 2', '"generation": 3'))
    written.pop("crc32")
    third = GenerationRecord.model_validate(written)
    for folder_name in ("data", "ledger"):
        os.renames(labelled.folder / folder_name / "0002", labelled.folder / third.staged / folder_name / "0003")
    (labelled.folder / generation_path(3)).write_text(third.model_dump_json())
    after = retag(folder, {"toxicity": 0.4}).after
    assert (after.generation, after.thresholds["toxicity"].spec) == (4, "0.4")
    assert verify(folder).problems == []


def test_a_damaged_unit_is_named_and_the_dataset_is_unchanged(labelled):
    part = labelled.folder / "units/0001/00000/00000001.cpu.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(IncompleteError, match=r"units/0001/00000/00000001\.cpu\.parquet is damaged"):
        retag(str(labelled.folder), {"toxicity": 0.3})
    assert open_dataset(str(labelled.folder)).manifest.generation == 1
    assert verify(str(labelled.folder), units=False).problems == []


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [({"pep8": 0}, "threshold for 'pep8', but no scorer fills that column"), ({"pii": "p101"}, "threshold pii=p101")],
)
def test_wrong_thresholds_are_refused_before_anything_is_written(labelled, thresholds, message):
    before = bytes_below(labelled.folder, "")
    with pytest.raises(UserError, match=message):
        retag(str(labelled.folder), thresholds)
    assert bytes_below(labelled.folder, "") == before


def test_a_dataset_that_cannot_be_retagged_is_refused(tmp_path):
    with pytest.raises(UserError, match="There is nothing at"):
        retag(str(tmp_path / "nothing"), {"toxicity": 0})
    commit_units(tmp_path / "unsealed", UNITS, ["toxicity", "pii"])
    with pytest.raises(UserError, match="is incomplete: labelling has not finished"):
        retag(str(tmp_path / "unsealed"), {"toxicity": 0})
    make_dataset(tmp_path / "copy", ["One."], {"toxicity": lambda sentence: 0.5})
    with pytest.raises(UserError, match=r"is a copy without its scored units .*Give the --output"):
        retag(str(tmp_path / "copy"), {"toxicity": 0})


def test_quarantine_does_not_change(tmp_path):
    gone = {0: [Quarantined(SOURCE, 1, "deadline")]}
    cut = [Quarantined(SOURCE, 99, "truncated-source")]
    made = commit_units(tmp_path / "out", UNITS, ["toxicity", "pii"], quarantined=gone, cut=cut)
    made.write_job()
    before = made.seal().ledger
    after = retag(str(made.folder), {"pii": 0}).after.ledger
    assert after.model_dump(exclude={"segments", "quarantine"}) == before.model_dump(exclude={"segments", "quarantine"})
    assert [file.sha256 for file in after.quarantine] == [file.sha256 for file in before.quarantine]


def test_a_retag_stops_older_drivers(labelled):
    older = Epoch.claim(open_storage(str(labelled.folder)))
    retag(str(labelled.folder), {"toxicity": 0.3})
    with pytest.raises(UserError, match="taken over"):
        older.check()


def test_the_command_shows_both_thresholds(labelled):
    runner = CliRunner()
    result = runner.invoke(app, ["retag", str(labelled.folder), "--threshold", "toxicity=0.3"])
    assert result.exit_code == 0, result.output
    assert "generation 2" in result.stdout.replace("\n", "")
    as_json = runner.invoke(app, ["retag", str(labelled.folder), "-t", "toxicity=0.4", "-t", "pii=p10", "--json"])
    facts = json.loads(as_json.stdout)
    assert (facts["changed"], facts["generation"]) == (True, 3)
    assert facts["thresholds"]["toxicity"]["before"]["spec"] == "0.3"
    assert facts["thresholds"]["pii"]["now"]["spec"] == "p10"
    again = runner.invoke(app, ["retag", str(labelled.folder), "-t", "pii=p10"])
    assert again.exit_code == 0
    assert "nothing was done" in again.stdout.replace("\n", " ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-t", "toxicity"], "is not of the form COLUMN=VALUE"),
        (["-t", "=1"], "is not of the form COLUMN=VALUE"),
        (["-t", "toxicity=0", "-t", "toxicity=1"], "names the column 'toxicity' twice"),
        (["-t", "toxicity=half"], "neither a number >= 0 nor a percentile"),
        ([], "Missing option"),
    ],
)
def test_the_command_refuses_invalid_thresholds(labelled, flags, message):
    result = CliRunner().invoke(app, ["retag", str(labelled.folder), *flags])
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_job_resumes_with_the_thresholds_that_its_dataset_has_now(labelled):
    storage = open_storage(str(labelled.folder))
    stored = load_job(storage).record

    def given(spec):
        return stored.model_copy(update={"config": stored.config | {"thresholds": {"toxicity": spec, "pii": "0"}}})

    begun = given("p50")
    with pytest.raises(UserError, match=r"thresholds\.toxicity: was 'p50', now '0.3'"):
        refuse_other_settings(storage, begun, given("0.3"))
    retag(str(labelled.folder), {"toxicity": 0.3})
    refuse_other_settings(storage, begun, given("0.3"))
    refuse_other_settings(storage, begun, begun)
    with pytest.raises(UserError, match=r"thresholds\.toxicity: was '0.3', now '0.5'"):
        refuse_other_settings(storage, begun, given("0.5"))
