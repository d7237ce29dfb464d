"""Only the user of this machine can make a pickle trusted, never the file that names it."""

import pytest

from pipeline.config import LabelExecution
from pipeline.dataset.manifest import ScorerEntry
from pipeline.options import execution_config, label_config, score_config
from scorers.contract import Execution
from scorers.errors import UserError
from scorers.pii.entities import find_model
from scorers.registry import ScorerSpec, check_recorded
from scorers.trusted_pickles import trusted_by_environment, trusted_by_user
from training.scoring import rebuild_scorer

ONE, OTHER = "1" * 64, "ab" * 32


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("PHF_TRUST_SHA256", f"{OTHER.upper()}")


def test_hashes_come_from_the_environment_and_the_users_own_scorers():
    assert trusted_by_environment() == {OTHER}
    assert trusted_by_user([{"sha256": ONE.upper()}, {"sha256": None}, {}]) == {ONE, OTHER}
    assert Execution().trusted_sha256 == LabelExecution().of("x").trusted_sha256 == {OTHER}


def test_a_value_that_is_not_a_hash_is_refused(monkeypatch):
    monkeypatch.setenv("PHF_TRUST_SHA256", f"{ONE},everything")
    with pytest.raises(UserError, match="PHF_TRUST_SHA256"):
        trusted_by_environment()


def test_hashes_come_from_flags_and_files_of_the_user(tmp_path):
    flag = f"toxicity=detoxify:x.ckpt,sha256={ONE}"
    file = tmp_path / "config.yaml"
    file.write_text(f"scorers: {{toxicity: {{kind: detoxify, model: x.ckpt, sha256: '{ONE}'}}}}\n")
    for given in ({"scorers": [flag]}, {"config": file}):
        label = label_config({"inputs": ["x"], "output": "y"}, **given)
        score = score_config({"dataset": "y"}, **given)
        assert label.execution.of("toxicity").trusted_sha256 == {ONE, OTHER}
        assert score.execution.of("toxicity").trusted_sha256 == {ONE, OTHER}
    assert execution_config({}).trusted_sha256 == {OTHER}


def test_a_recorded_scorer_of_another_kind_than_its_fingerprint_is_not_built(tmp_path):
    options = {"model": str(tmp_path / "absent.ckpt"), "sha256": ONE}
    with pytest.raises(UserError, match=r"fingerprint 'linear-0000' is of another kind"):
        rebuild_scorer("toxicity", ScorerEntry(kind="detoxify", options=options, fingerprint="linear-0000"))


def test_a_recorded_spacy_folder_is_read_only_where_the_user_vouches_for_it(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.cfg").write_text("no pipeline")
    options = {"spacy_model": str(tmp_path / "model")}
    entry = ScorerEntry(kind="scrubadub", options=options, fingerprint="scrubadub-0000")
    # Without entities no model is loaded.
    check_recorded("pii", ScorerSpec(kind="scrubadub", entities="none", **options), "scrubadub-0000", ())
    with pytest.raises(UserError, match="not loaded on the dataset's word") as refused:
        rebuild_scorer("pii", entry)
    digest = str(refused.value).partition("PHF_TRUST_SHA256=")[2].partition(" ")[0]
    monkeypatch.setenv("PHF_TRUST_SHA256", digest)
    with pytest.raises(UserError, match="cannot be loaded"):  # it was read
        rebuild_scorer("pii", entry)
    (tmp_path / "model/more").write_text("changed since")
    with pytest.raises(UserError, match="not loaded on the dataset's word"):
        rebuild_scorer("pii", entry)


def test_a_spacy_folder_in_the_working_directory_is_not_taken_for_a_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of_mine").mkdir()
    (tmp_path / "of_mine/config.cfg").write_text("")
    with pytest.raises(UserError, match=r"write \./of_mine"):
        find_model("of_mine")
    assert find_model("./of_mine") == "./of_mine"
