"""`phf export-model`: a checkpoint gives the same folder as `phf train` does at its end, under every ZeRO stage."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from phf import app
from tests.training.jobs import make_code_dataset, run_job
from training.export.checkpoint import _precision
from training.model.language_model import VALUE_HEAD_FILE
from training.runs import checkpoints
from training.runs.best import record
from training.runs.folder import RunFolder

# The rate does not depend on how long the run is.
STEADY = {"training__schedule": "constant", "training__warmup_ratio": 0, "training__keep_checkpoints": 9}


def export(run, *options, status=0):
    result = CliRunner().invoke(app, ["export-model", str(run), *map(str, options)])
    assert result.exit_code == status, result.output
    return " ".join(result.output.split())


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def conditional(tmp_path_factory, code_dataset):
    output = tmp_path_factory.mktemp("export") / "run"
    run_job(code_dataset, output, "conditional", **STEADY, training__save_every=4)
    return output


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_last_checkpoint_is_the_model_that_the_run_wrote(tmp_path, code_dataset, stage):
    output = tmp_path / "run"
    run_job(code_dataset, output, "awr", training__zero_stage=stage)
    expected = content(output / "model")
    assert VALUE_HEAD_FILE in expected
    printed = export(output, "--json")
    assert json.loads(printed) == {"model": str(output / "exports/step-00000012"), "step": 12}
    assert content(output / "exports/step-00000012") == expected
    # As in a run that goes on, which has none yet.
    shutil.rmtree(output / "model")
    export(output, "--output", tmp_path / "again")
    assert content(tmp_path / "again") == expected


def test_a_checkpoint_is_the_model_of_a_run_that_ended_there(tmp_path, code_dataset, conditional):
    run_job(code_dataset, tmp_path / "shorter", "conditional", **STEADY, training__num_tokens=8 * 4 * 32)
    assert "The model of step 8 is in" in export(conditional, "--step", 8, "--output", tmp_path / "model")
    assert content(tmp_path / "model") == content(tmp_path / "shorter/model")
    assert content(tmp_path / "model") != content(conditional / "model")


def test_the_best_is_chosen_by_its_figures(tmp_path, conditional):
    assert "none of its checkpoints was evaluated" in export(conditional, "--best", status=2)
    for step, (misalignment, bits) in {4: (0.3, 2.0), 8: (0.1, 3.0), 10: (0.0, 0.0)}.items():
        record(conditional / "checkpoints", step, {"misalignment": misalignment, "bits_per_byte": bits})
    for number, (metric, step) in enumerate({"misalignment": 8, "bits_per_byte": 4}.items()):
        assert f"of step {step} " in export(conditional, "--metric", metric, "--output", tmp_path / str(number))
    assert "no training.best_metric: give one of bits_per_byte, misalignment" in export(conditional, "--best", status=2)
    assert "has hit_rate: give one of" in export(conditional, "--metric", "hit_rate", status=2)


def test_what_cannot_be_exported_is_refused(tmp_path, code_dataset, conditional):
    assert "no checkpoint of step 5; it has: 4, 8, 12" in export(conditional, "--step", 5, status=2)
    assert "exists already" in export(conditional, "--output", tmp_path, status=2)
    (tmp_path / "file").write_text("")
    assert "Cannot write" in export(conditional, "--output", tmp_path / "file/x", status=2)
    assert "exclude each other" in export(conditional, "--best", "--step", 4, status=2)
    copy = shutil.copytree(conditional, tmp_path / "copy")
    (copy / "checkpoints/step-00000004/generators-00000.pt").write_bytes(b"")
    assert "is damaged: generators-00000.pt has 0 bytes" in export(copy, "--step", 4, status=2)
    (copy / "model/tokenizer.json").write_text("{")
    assert "Cannot read the tokenizer in" in export(copy, "--output", tmp_path / "new", status=2)
    shutil.rmtree(copy / "model")
    other = make_code_dataset(tmp_path / "other", ["textwrap", "string", "queue", "cmd"])
    run = RunFolder(copy)
    data = run.read_config().data
    # One that names no tokenizer trains it on what it is given.
    run.write_config(run.read_config().model_copy(update={"data": data.model_copy(update={"tokenizer": None})}))
    assert "is not the one that" in export(copy, "--dataset", other, status=2)
    shutil.rmtree(copy / "checkpoints")
    assert "has no checkpoint yet" in export(copy, status=2)


def test_one_that_goes_away_while_it_is_verified_is_not_called_damaged(tmp_path, conditional, monkeypatch):
    copy, original = shutil.copytree(conditional, tmp_path / "copy"), checkpoints.verify

    def rotated(path):
        path.rename(path.with_name(".staging-removed"))
        return original(path)

    monkeypatch.setattr(checkpoints, "verify", rotated)
    stderr = export(copy, status=2)
    assert "step-00000012 was removed while it was read" in stderr
    assert "damaged" not in stderr


def test_the_weights_have_the_precision_of_the_training():
    assert _precision({"bf16": {"enabled": True}, "fp16": {"enabled": False}}) == torch.bfloat16
    assert _precision({"bf16": {"enabled": False}, "fp16": {"enabled": True}}) == torch.float16
    assert _precision({}) == torch.float32
