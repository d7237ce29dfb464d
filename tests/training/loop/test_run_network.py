"""Options of the network are refused where they are not available, and do not change results where they are."""

import tempfile
from pathlib import Path

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

from scorers.errors import UserError
from tests.training.jobs import figures, job_config, run_job
from tests.training.model.test_models import small_llama
from training.config import ModelConfig, TrainingConfig
from training.distributed.world import World
from training.engine.deepspeed_config import deepspeed_config
from training.engine.engine import check_compiler
from training.loop.run_network import check_network
from training.model.kernels import use_liger
from training.model.language_model import build_model
from training.model.vocabulary import Vocabulary
from training.schedule import plan_horizon

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def check(tmp_path, *, device=GPU, precision="bf16", **changes):
    check_network(job_config(tmp_path, tmp_path, **changes), World(0, 0, 1, 1, device), precision)


@pytest.mark.parametrize(
    ("changes", "device", "precision", "message"),
    [
        ({"model__attention": "flash_attention_2"}, CPU, "fp32", "attention=flash_attention_2 needs a GPU.*=auto"),
        ({"model__attention": "flash_attention_2"}, GPU, "fp32", "only computes in bf16 or fp16.*precision=bf16"),
        ({"model__attention": "flash_attention_2"}, GPU, "bf16", r"package flash_attn \(pip install flash-attn"),
        ({"model__attention": "flash_attention_3"}, GPU, "bf16", r"package flash_attn_interface \(the folder hopper"),
        ({"model__kernels": "liger"}, CPU, "fp32", "kernels=liger needs a GPU.*=torch"),
        ({"model__kernels": "liger"}, GPU, "bf16", r"liger_kernel is not installed. pip install 'phf\[liger\]'"),
    ],
)
def test_what_cannot_run_here_is_refused_before_the_data(tmp_path, changes, device, precision, message):
    with pytest.raises(UserError, match=message):
        check(tmp_path, device=device, precision=precision, **changes)
    check(tmp_path, device=device, precision=precision)


def test_the_kernels_of_an_architecture_are_looked_for_when_it_is_known():
    with pytest.raises(UserError, match="liger_kernel is not installed"):
        use_liger(build_model(ModelConfig(name="nano"), Vocabulary(40, 0)).causal)


def test_a_compiler_is_looked_for(monkeypatch):
    check_compiler(CPU)
    monkeypatch.setattr("training.engine.engine.find_spec", lambda name: None)
    with pytest.raises(UserError, match="package triton"):
        check_compiler(GPU)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler on a CPU"):
        check_compiler(CPU)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_the_one_that_was_asked_for(tmp_path, attention):
    small_llama().save_pretrained(tmp_path)
    for name in ("nano", str(tmp_path)):
        model = build_model(ModelConfig(name=name, attention=attention), Vocabulary(40, 0))
        assert model.causal.config._attn_implementation == attention
        model.causal.save_pretrained(tmp_path / "again")
        again = ModelConfig(name=str(tmp_path / "again"), pretrained=True, attention=attention)
        assert build_model(again, Vocabulary(40, 0)).causal.config._attn_implementation == attention


class TestOffload:
    def config(self, **training):
        config = TrainingConfig(batch_size=4, **training)
        horizon = plan_horizon(config, 16, 1)
        return deepspeed_config(config, horizon, "fp32", parameters=1, on_gpu=True)["zero_optimization"]

    def test_it_becomes_deepspeeds(self):
        away = {"device": "cpu", "pin_memory": True}
        assert self.config(zero_stage=2, offload="optimizer")["offload_optimizer"] == away
        whole = self.config(zero_stage=3, offload="parameters")
        assert whole["offload_optimizer"] == whole["offload_param"] == away
        assert not {"offload_optimizer", "offload_param"} & self.config(zero_stage=3).keys()

    @pytest.mark.parametrize(
        ("training", "message"),
        [
            ({"zero_stage": 0, "offload": "optimizer"}, "offload=optimizer needs ZeRO. Set training.zero_stage=1"),
            ({"zero_stage": 2, "offload": "parameters"}, "offload=parameters needs ZeRO stage 3"),
            ({"zero_stage": 3, "compile": True}, "compile does not work with ZeRO stage 3"),
        ],
    )
    def test_what_does_not_go_together_is_refused(self, training, message):
        with pytest.raises(UserError, match=message):
            self.config(**training)

    @pytest.mark.parametrize(("stage", "offload"), [(1, "optimizer"), (2, "optimizer"), (3, "parameters")])
    def test_it_changes_no_number(self, tmp_path, code_dataset, stage, offload):
        steps = {"training__num_tokens": 4 * 4 * 32, "training__zero_stage": stage}
        run_job(code_dataset, tmp_path / "here", "awr", objective__alpha=0.5, objective__beta=1.0, **steps)
        run_job(
            code_dataset,
            tmp_path / "away",
            "awr",
            objective__alpha=0.5,
            objective__beta=1.0,
            training__offload=offload,
            **steps,
        )
        for mine, theirs in zip(figures(tmp_path / "away"), figures(tmp_path / "here"), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5)


def test_a_compiled_network_learns_the_same(tmp_path, code_dataset, monkeypatch):
    # All but the generated C++, which takes a minute; without a break in the graph.
    compiler, calls = torch.compile, []

    def compiled(function, *arguments, **options):
        if function.__name__ != "_run_body":  # DeepSpeed compiles some of its own
            return compiler(function, *arguments, **options)
        calls.append(function)
        return compiler(function, backend="aot_eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", compiled)
    options = {"objective__alpha": 0.5, "objective__beta": 1.0, "training__num_tokens": 3 * 4 * 32}
    options |= {"data__document_masking": "true", "model__pad_vocab_to": 128}
    run_job(code_dataset, tmp_path / "plain", "awr", **options)
    run_job(code_dataset, tmp_path / "compiled", "awr", training__compile="true", **options)
    assert len(calls) == 1
    for mine, theirs in zip(figures(tmp_path / "compiled"), figures(tmp_path / "plain"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("there", ["nothing", "ours", "open to all", "a link"])
def test_compiled_code_is_taken_from_no_folder_of_others(tmp_path, monkeypatch, there):
    (tmp_path / "other").mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # Set, so that it is put back, and then taken away.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    usual = Path(default_cache_dir())
    if there == "a link":
        usual.symlink_to("other")
    elif there != "nothing":
        usual.mkdir()
        usual.chmod(0o755 if there == "ours" else 0o777)
    build_model(ModelConfig(name="nano"), Vocabulary(40, 0)).compile_body()
    used = Path(cache_dir())
    assert (used == usual) == (there in ("nothing", "ours"))
    assert used.parent == tmp_path
    assert not used.is_symlink()
    assert not used.stat().st_mode & 0o022


def test_an_architecture_whose_loss_needs_logits_is_not_compiled():
    model = build_model(ModelConfig(name="nano"), Vocabulary(40, 0))
    model.has_linear_head = False
    with pytest.raises(UserError, match=r"training\.compile: the logits of GPT2LMHeadModel"):
        model.compile_body()


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("tie", [True, False])
def test_a_skeleton_has_the_shape_of_the_model_and_no_memory(tmp_path, pretrained, tie):
    small_llama(tie=tie).save_pretrained(tmp_path / "config")
    network = ModelConfig(name=str(tmp_path / "config"))
    if pretrained:
        build_model(network, Vocabulary(40, 0)).causal.save_pretrained(tmp_path / "weights")
        network = ModelConfig(name=str(tmp_path / "weights"), pretrained=True)
    asked = {"value_head": True, "rows_multiple": 64, "document_masking": True}
    whole, skeleton = (
        build_model(network, Vocabulary(42, 0, (40, 41)), **asked, skeleton=skeleton) for skeleton in (False, True)
    )
    assert all(each.is_meta for each in [*skeleton.parameters(), *skeleton.buffers()])
    for kind in ("named_parameters", "named_buffers"):
        theirs = [(name, each.shape, each.dtype) for name, each in getattr(whole, kind)()]
        assert [(name, each.shape, each.dtype) for name, each in getattr(skeleton, kind)()] == theirs
    assert (skeleton.padding.size, skeleton.padding.rows) == (42, 64)
