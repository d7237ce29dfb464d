"""A foreign checkpoint runs no code and writes no files, whichever part of phf or DeepSpeed reads it."""

import hashlib
import json
import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from phf import app
from scorers.errors import UserError
from tests.training.engine.test_engine import batch, make
from tests.training.jobs import run_job
from training.distributed.world import World
from training.engine.plain_loading import plain_loading
from training.engine.zero import to_universal
from training.export.checkpoint import checkpoint_weights


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return open, (str(self.witness), "w")


def spoil(file, witness):
    state = torch.load(file, weights_only=False)
    state["more"] = Hostile(witness)
    torch.save(state, file)


@pytest.fixture(scope="module")
def world():
    world = World.from_environment()
    world.start()
    return world


def saved(world, folder, stage):
    engine, loss = make(world, zero_stage=stage, skip_sigmas=6.0 if stage else None)
    engine.train_step(batch(0), loss, 1e-3)
    folder.mkdir()
    engine.save(folder)
    return engine


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_loading_a_checkpoint_runs_no_code(world, tmp_path, stage):
    engine = saved(world, tmp_path / "whole", stage)
    files = sorted(each.relative_to(tmp_path / "whole") for each in (tmp_path / "whole").rglob("*.pt"))
    assert len(files) == (2 if stage == 0 else 4)
    for file in files:
        spoilt = shutil.copytree(tmp_path / "whole", tmp_path / "spoilt", dirs_exist_ok=True)
        spoil(spoilt / file, tmp_path / "witness")
        with pytest.raises(UserError, match="neither tensors nor plain values"):
            engine.load(spoilt)
        assert not (tmp_path / "witness").exists()
    engine.load(tmp_path / "whole")
    engine.close()


@pytest.mark.parametrize("stage", [1, 3])
def test_exporting_or_converting_a_checkpoint_runs_no_code(world, tmp_path, stage):
    folder, witness = tmp_path / "checkpoint", tmp_path / "witness"
    saved(world, folder, stage).close()
    for file in (folder / "deepspeed").iterdir():
        shutil.copy(file, tmp_path / "kept")
        spoil(file, witness)
        if stage == 3 or "optim" not in file.name:
            with pytest.raises(UserError, match="neither tensors nor plain values"):
                checkpoint_weights(folder)
        with pytest.raises(UserError, match="neither tensors nor plain values"), plain_loading(folder):
            to_universal(folder / "deepspeed", tmp_path / "universal")
        assert not witness.exists()
        shutil.copy(tmp_path / "kept", file)
    with plain_loading(folder):
        to_universal(folder / "deepspeed", tmp_path / "universal")


@pytest.mark.parametrize("place", ["module", "param_shapes"])
@pytest.mark.parametrize("name", ["../../escaped", "/{}/escaped", ".."])
def test_a_parameter_name_cannot_leave_the_folder(world, tmp_path, place, name):
    folder, name = tmp_path / "in" / "checkpoint", name.format(tmp_path)
    folder.parent.mkdir()
    saved(world, folder, 1).close()
    file = next((folder / "deepspeed").glob("mp_rank_*"))
    state = torch.load(file, weights_only=False)
    names = state["module"] if place == "module" else state["param_shapes"][0]
    renamed = OrderedDict((name if number == 0 else key, each) for number, (key, each) in enumerate(names.items()))
    torch.save({**state, place: renamed if place == "module" else [renamed]}, file)
    with pytest.raises(UserError, match="has a parameter with an unsafe name"), plain_loading(folder):
        to_universal(folder / "deepspeed", folder.parent / "universal")
    assert not list(tmp_path.rglob("*escaped*"))
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_fp16_scales_and_offload_settings_can_be_loaded(tmp_path):
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
    from deepspeed.runtime.zero.offload_config import OffloadDeviceEnum

    scaler = DynamicLossScaler(2**16, 2.0, 1000, 1.0, 2, False, dtype=torch.float16)
    torch.save({"loss_scaler": scaler, "place": OffloadDeviceEnum.cpu}, tmp_path / "state.pt")
    with plain_loading(tmp_path):
        state = torch.load(tmp_path / "state.pt")
    assert state["loss_scaler"].cur_scale == 2**16
    assert state["place"] is OffloadDeviceEnum.cpu


def test_an_incomplete_checkpoint_is_a_user_error(world, tmp_path):
    engine = saved(world, tmp_path / "checkpoint", 1)
    for file in (tmp_path / "checkpoint" / "deepspeed").iterdir():
        torch.save({}, file)
    with pytest.raises(UserError, match="does not have the format of this version"):
        engine.load(tmp_path / "checkpoint")
    with pytest.raises(UserError, match="does not have the format of this version"):
        checkpoint_weights(tmp_path / "checkpoint")
    engine.close()


def test_generators_of_another_size_are_a_user_error(world, tmp_path):
    engine = saved(world, tmp_path / "checkpoint", 1)
    file = next((tmp_path / "checkpoint").glob("generators-*.pt"))
    torch.save({"cpu": torch.load(file)["cpu"][:-8]}, file)
    with pytest.raises(UserError, match=rf"RuntimeError in {file.name}\): it was changed"):
        engine.load(tmp_path / "checkpoint")
    engine.close()


def test_memory_and_peer_failures_do_not_blame_the_checkpoint(tmp_path):
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("gloo: Connection closed by peer")):
        with pytest.raises(type(error), match=str(error)), plain_loading(tmp_path):
            raise error


def test_recomputed_hashes_do_not_make_a_run_trusted(tmp_path, code_dataset):
    run_job(code_dataset, tmp_path / "run", "mle")
    step = sorted((tmp_path / "run/checkpoints").glob("step-*"))[-1]
    spoil(next(step.rglob("mp_rank_*")), tmp_path / "witness")
    marker = json.loads((step / "COMMITTED").read_text())
    for each in marker["files"]:
        content = (step / each["path"]).read_bytes()
        each |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (step / "COMMITTED").write_text(json.dumps(marker))
    done = CliRunner().invoke(app, ["export-model", str(tmp_path / "run"), "--output", str(tmp_path / "model")])
    assert done.exit_code == 2, done.output
    assert "neither tensors nor plain values" in " ".join(done.output.split())
    assert not (tmp_path / "witness").exists()
    assert not (tmp_path / "model").exists()


def test_no_code_asks_for_a_pickle():
    sources = [path for part in ("scorers", "pipeline", "training", "infra") for path in Path(part).rglob("*.py")]
    assert sources
    assert not [path for path in sources if "weights_only=False" in path.read_text(encoding="utf-8")]
