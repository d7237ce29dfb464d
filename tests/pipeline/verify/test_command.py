"""The output of `phf verify`, and what it refuses."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from phf import app
from pipeline.checking.verify import verify
from pipeline.dataset import open_dataset
from scorers.errors import UserError
from tests.datasets import make_dataset
from tests.pipeline.verify.forging import SHARD, change_text, edit, problems, reforge


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "There is nothing at"),
        (lambda folder: (folder / "units").mkdir(parents=True), "is incomplete: labelling has not finished"),
        (lambda folder: (folder / "job").mkdir(parents=True), "is incomplete: labelling has not finished. .phf status"),
        (lambda folder: (folder / "photos").mkdir(parents=True), "is not a labelled dataset: it has no manifest.json"),
    ],
)
def test_a_folder_that_is_not_a_dataset_is_refused(tmp_path, prepare, message):
    prepare(tmp_path / "out")
    if (tmp_path / "out/units").is_dir():
        (tmp_path / "out/units/notes.json").write_text("{}")
    if (tmp_path / "out/job").is_dir():
        (tmp_path / "out/job/config.json").write_text("{}")
    if (tmp_path / "out/photos").is_dir():
        (tmp_path / "out/photos/cat.jpg").write_text("")
    for refuse in (verify, open_dataset):
        with pytest.raises(UserError, match=message):
            refuse(str(tmp_path / "out"))


def test_another_schema_version_is_refused(dataset):
    edit(dataset, schema_version=3)
    with pytest.raises(UserError, match="schema version 3, but this phf reads versions 1 and 2"):
        verify(str(dataset))


def test_the_command_exits_with_0_and_lists_what_was_checked(sealed):
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


def test_the_command_exits_with_2_without_a_dataset(tmp_path):
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "nothing")])
    assert result.exit_code == 2
    assert "There is nothing at" in result.stderr


def test_the_scored_units_are_checked_unless_disabled(dataset):
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


def test_files_that_no_record_names_have_their_own_remedy(dataset):
    (dataset / "units/0001/00000/00000001.gpu.parquet").write_bytes(b"")
    report = verify(str(dataset))
    what = "the unit's commit record does not name it"
    assert [str(each) for each in report.problems] == [f"units/0001/00000/00000001.gpu.parquet: {what}"]
    assert "phf gc" in str(report.remedy)


def test_the_remedy_of_a_copy_is_another_copy(dataset):
    shutil.rmtree(dataset / "units")
    (dataset / SHARD).unlink()
    assert verify(str(dataset)).remedy == "Copy the dataset again from where it was labelled."


def test_problems_contain_no_text_of_the_corpus(dataset):
    reforge(dataset, change=change_text)
    assert not any("Satz" in each for each in problems(dataset))


def test_a_dataset_of_the_test_helper_verifies(tmp_path):
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
