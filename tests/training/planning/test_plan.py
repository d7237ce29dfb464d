"""`phf train --plan`: counts are exact, estimates are within stated bounds, and nothing is written."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig
from typer.testing import CliRunner

from phf import app
from scorers.errors import UserError
from tests.training.footprint import resident
from tests.training.jobs import ENVIRONMENT, ROOT
from training.config import ModelConfig, TrainingConfig
from training.engine.deepspeed_config import deepspeed_config
from training.model.counting import count_parameters, flops_per_token
from training.model.language_model import build_model
from training.model.shape import trace_shape
from training.model.vocabulary import Vocabulary
from training.planning.estimate import (
    Job,
    Layout,
    Machine,
    bytes_sent,
    checkpoint_bytes,
    estimate_memory,
    estimate_seconds,
)
from training.planning.forecast import FILL, fitted, forecast
from training.planning.machines import MachineOptions, describe_machine
from training.planning.resolved_run import ResolvedRun
from training.schedule import plan_horizon
from training.settings import resolve_config

# How far memory may be off; see tests/benchmarks/README.md.
BOUND = 0.15


def shape(name, vocabulary=4096, context=128, dtype=torch.float32, **config):
    model = build_model(ModelConfig(name=str(name), **config), Vocabulary(vocabulary, 0), skeleton=True)
    return trace_shape(model, str(name), context_length=context, dtype=dtype)


def config(model="gpt2", objective="mle", **training):
    sets = [f"training.{key}={value}" for key, value in training.items()]
    missing = {"output": "", "task": "none", "data": {"dataset": ""}}
    flags = {"model": {"name": str(model)}, "objective": {"name": objective}}
    return resolve_config(None, flags, sets, defaults=missing)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    LlamaConfig(
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        max_position_embeddings=128,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_the_parameters_of_gpt2_are_those_it_is_known_for(name, parameters):
    assert count_parameters(build_model(ModelConfig(name=name), Vocabulary(50257, 0), skeleton=True))[0] == parameters


def really_kept(model, context):
    own = {each.untyped_storage().data_ptr() for each in [*model.parameters(), *model.buffers()]}
    found = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # What it gives is held too, so that none of its memory is given out twice.
        result = model.causal.base_model(input_ids=torch.zeros(1, context, dtype=torch.int64), use_cache=False)
    return sum(each.nbytes() for each in found.values()), result


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_model_without_weights_is_the_built_one(kind, llama):
    name = llama if kind == "llama" else "nano"
    built = build_model(ModelConfig(name=str(name)), Vocabulary(300, 0), value_head=True).train()
    model = build_model(ModelConfig(name=str(name)), Vocabulary(300, 0), value_head=True, skeleton=True)
    before = resident("VmRSS")
    found = trace_shape(model, "any", context_length=128, dtype=torch.float32)
    assert resident("VmRSS") - before < 500e6
    assert (found.parameters, found.parameters_embedding) == count_parameters(built)
    assert found.flops_per_token == flops_per_token(built, 128)
    assert (found.tied, found.linear_head, found.value_head) == (kind == "gpt2", built.has_linear_head, True)
    kept, _ = really_kept(built, 128)
    # With a mask, which transformers makes for a trace, keys and values that heads share are repeated.
    assert kept <= found.kept <= 1.06 * kept
    assert found.kept_checkpointed < found.kept / 4


def test_eager_attention_keeps_what_the_fused_one_does_not():
    model = build_model(ModelConfig(name="nano"), Vocabulary(4096, 0), skeleton=True)
    model.causal.set_attn_implementation("eager")
    fused, eager = shape("nano"), trace_shape(model, "nano", context_length=128, dtype=torch.float32)
    # Of each layer and head the weights, instead of a sum for each token.
    assert eager.kept - fused.kept == 2 * 2 * (128 * 128 - 128) * 4


def job(of, *, micro=1, accumulation=2, ranks=1, stage=1, checkpointing=False, on_gpu=False, **training):
    settings = TrainingConfig(
        batch_size=micro * accumulation * ranks, micro_batch_size=micro, zero_stage=stage, **training
    )
    precision = "fp32" if of.bytes_per_value == 4 else "bf16"
    horizon = plan_horizon(settings, of.context_length, ranks)
    made = deepspeed_config(settings, horizon, precision, parameters=of.parameters, on_gpu=on_gpu)
    return Job(of, Layout.of(made, of.parameters), ranks, micro, accumulation, checkpointing)


CPU = Machine("a CPU", False, 100e9, 16e9, 10e9, 1e9)
GPU = Machine("H100", True, 989e12, 80e9, 3.35e12, 225e9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "measured",
    [
        {"model": "tiny", "context": 256, "micro": 12, "steps": 2},  # mostly activations
        {"model": "mini", "context": 16, "micro": 1, "steps": 2, "vocabulary": 32768},  # mostly states
    ],
)
def test_the_estimate_is_near_what_a_fresh_process_takes(measured):
    # With glibc's thresholds fixed, freed tensors go back to the system, and what is left is what tensors take.
    fixed = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.footprint", json.dumps(measured)],
        env={**os.environ, **ENVIRONMENT, **fixed},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])["memory"]
    of = shape(measured["model"], measured.get("vocabulary", 4096), measured["context"])
    estimate = estimate_memory(job(of, micro=measured["micro"]), CPU)
    assert estimate.total - estimate.allocator == pytest.approx(found, rel=BOUND)


def test_states_shrink_with_the_stage_and_the_ranks():
    of = shape("gpt2", 50257, 1024, torch.bfloat16)
    by_stage = [estimate_memory(job(of, ranks=8, stage=stage, on_gpu=True), GPU).optimizer for stage in (1, 2, 3)]
    assert by_stage == [12 * of.parameters / 8] * 3
    totals = [estimate_memory(job(of, ranks=ranks, stage=2, on_gpu=True), GPU).total for ranks in (1, 2, 4, 8)]
    assert totals == sorted(totals, reverse=True)
    away = job(of, stage=2, on_gpu=True)
    away = replace(away, layout=replace(away.layout, offload_optimizer=True))
    found = estimate_memory(away, GPU)
    assert found.optimizer == 0
    assert found.main >= 12 * of.parameters


def test_gradients_of_bf16_are_counted_in_float32():
    of = shape("gpt2", 50257, 1024, torch.bfloat16)

    def gradients(stage, accumulation):
        return estimate_memory(job(of, ranks=4, stage=stage, accumulation=accumulation, on_gpu=True), GPU).gradients

    # In ZeRO 1 all of them from the start, in ZeRO 2 and 3 a rank's own, and what is waiting to be reduced.
    assert gradients(1, 1) == gradients(1, 8) == 4 * of.parameters
    for stage in (2, 3):
        assert of.parameters <= gradients(stage, 8) <= of.parameters + 2 * 5e8
    # The sums travel as they are, besides the weights.
    assert bytes_sent(job(of, ranks=4, stage=1)) == 3 / 4 * of.parameters * (2 * 4 + 2)


def test_communication_is_counted_by_rings():
    of = shape("nano")
    once = (3 / 4) * of.parameters * 4
    assert bytes_sent(job(of)) == 0
    assert [bytes_sent(job(of, ranks=4, accumulation=5, stage=stage)) / once for stage in (1, 2, 3)] == [2, 6, 15]


def test_more_arithmetic_takes_longer_and_a_given_share_of_the_peak_is_used():
    of = shape("tiny", context=256)
    plain, again = (estimate_seconds(job(of, checkpointing=each), CPU).compute for each in (False, True))
    assert again == pytest.approx(plain * 4 / 3)
    given = estimate_seconds(job(of), replace(CPU, utilisation=0.5)).compute
    assert given == pytest.approx(2 * 256 * of.flops_per_token / 50e9)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_micro_batch_is_the_largest_that_fits(stage):
    options = MachineOptions(ranks=4, device="H100", memory=8e9)
    found = forecast(config(zero_stage=stage), options)
    horizon = found.run.horizon
    assert found.fits
    assert horizon.micro_batch_size * horizon.accumulation * 4 == 64
    assert 1 < horizon.micro_batch_size < 16
    larger = forecast(config(zero_stage=stage, micro_batch_size=2 * horizon.micro_batch_size), options)
    assert not larger.fits
    assert larger.memory.total > FILL * 8e9


def test_each_remedy_makes_it_fit():
    options = MachineOptions(ranks=2, device="A100", memory=5.8e9)
    found = forecast(config("gpt2-medium"), options)
    assert not found.fits
    assert found.run.horizon.micro_batch_size == 1
    assert "training.activation_checkpointing=true" in found.remedies
    assert any(remedy.startswith("--ranks") for remedy in found.remedies)
    for remedy in found.remedies:
        changes, ranks = {}, 2
        for part in remedy.split(" and "):
            if part.startswith("--ranks"):
                ranks = int(part.split()[1])
            else:
                key, _, value = part.removeprefix("training.").partition("=")
                changes[key] = value
        assert forecast(config("gpt2-medium", **changes), replace(options, ranks=ranks)).fits, remedy


def test_what_other_settings_forbid_is_no_remedy():
    found = forecast(config("gpt2-xl", compile=True), MachineOptions(ranks=8, device="H100", memory=4e9))
    assert not found.fits
    assert not any("zero_stage=3" in remedy for remedy in found.remedies)


def test_checkpoints_that_are_kept_and_copied_are_counted():
    options = MachineOptions(device="H100")
    plain, kept = (forecast(config(**each), options) for each in ({}, {"keep_best": 3, "best_metric": "loss"}))
    assert kept.checkpoints_kept == plain.checkpoints_kept + 3
    beside = forecast(config(save_async=True), options)
    assert (beside.memory.main - plain.memory.main, beside.memory.total) == (plain.checkpoint, plain.memory.total)
    here, copied = (forecast(config("nano", save_async=each), MachineOptions(memory=1e12)) for each in (False, True))
    assert copied.memory.total - here.memory.total == pytest.approx(here.checkpoint)


def test_on_a_cpu_the_batch_is_cut_as_a_run_cuts_it():
    of = config("nano", batch_size=24)
    assert forecast(of, MachineOptions(ranks=2, memory=1e12)).run.horizon == plan_horizon(of.training, 128, 2)
    run = ResolvedRun(of, plan_horizon(of.training, 128, 1), "fp32", on_gpu=False)
    assert fitted(run, 400, torch.device("cpu")) is run


def test_the_value_head_and_the_control_tokens_are_counted():
    options = MachineOptions(device="H100")
    plain, awr, conditional = (
        forecast(config("nano", objective), options).job.shape.parameters for objective in ("mle", "awr", "conditional")
    )
    assert (awr - plain, conditional - plain) == (64, 2 * 64)


def test_a_checkpoint_is_as_large_as_it_says(tmp_path):
    from training.distributed.world import World
    from training.engine.engine import Engine

    world = World.from_environment()
    world.start()
    settings = TrainingConfig(batch_size=2, micro_batch_size=1)
    model = build_model(ModelConfig(name="nano"), Vocabulary(4096, 0))
    engine = Engine(model, settings, plan_horizon(settings, 128, 1), world, "fp32")
    engine.save(tmp_path)
    engine.close()
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    # The moments are there from the first update on.
    of = shape("nano")
    assert written + 8 * of.parameters == pytest.approx(checkpoint_bytes(job(of)), rel=0.1)


def plan(*arguments):
    return CliRunner().invoke(app, ["train", "--plan", *map(str, arguments)])


def test_a_plan_refuses_a_damaged_dataset(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    result = plan("--model", "nano", "--plan-device", "H100", tmp_path)
    assert result.exit_code == 2
    assert "manifest.json is damaged" in " ".join(result.stderr.split())


def test_a_plan_needs_nothing_and_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = plan("--model", "gpt2", "--ranks", 8, "--plan-device", "H100", "--output", "run", "missing", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["fits"]
    assert found["model"]["parameters"] == 124_439_808 - (50257 - 8192) * 768
    assert found["horizon"]["ranks"] == 8
    assert found["memory"]["total"] <= found["memory"]["available"] == FILL * 80e9
    assert 0 < found["mfu"] < 0.65
    assert found["total_seconds"] == pytest.approx(found["step_seconds"]["total"] * found["horizon"]["steps"])
    assert "Memory of a rank" in result.stderr
    assert "225 GB/s between ranks" in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan-device", "abacus"], "unknown device"),
        (["--ranks", 3, "--plan-device", "H100"], "cannot be divided among 3 ranks"),
        (["--model", "/no/model"], "Cannot load model"),
        (["--set", "data.context_length=4096", "--model", "gpt2"], "has positions for 1024"),
        (
            ["--model", "gpt2-medium", "--plan-device", "L4", "--plan-memory", 6],
            "What would help: training.offload=optimizer; or --ranks 2",
        ),
        (["--model", "gpt2", "--plan-device", "L4", "--plan-memory", 0.1], "a smaller model"),
        (["--model", "nano", "--plan-device", "L4", "--plan-memory", "inf"], "less than or equal to"),
        (["--model", "nano", "--plan-device", "L4", "--plan-bandwidth", "inf"], "less than or equal to"),
        (["--tokenizer", "/no/tokenizer", "--model", "nano"], "Cannot load the tokenizer"),
        (["--model", "nano", "--set", "training.best_metric=bits"], "training.best_metric=bits is not known"),
        (["--model", "nano", "--set", "objective.drop_tags=0.1"], "The objective mle has no tags to drop"),
        (["--model", "nano", "--set", "objective.cooldown=0.1"], "objective mle has no tags to leave out at the end"),
    ],
)
def test_what_cannot_be_planned_or_does_not_fit_exits_2(arguments, message):
    result = plan(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_its_flags_need_it():
    result = CliRunner().invoke(app, ["train", "data", "--output", "run", "--task", "t", "--plan-device", "H100"])
    assert result.exit_code == 2
    assert "need --plan" in result.stderr


def test_a_model_that_looks_at_its_numbers_is_refused(monkeypatch):
    model = build_model(ModelConfig(name="nano"), Vocabulary(64, 0), skeleton=True)
    forward = model.causal.base_model.forward

    def looks(**inputs):
        result = forward(**inputs)
        assert float(result.last_hidden_state.detach().sum()) < 1e9
        return result

    monkeypatch.setattr(model.causal.base_model, "forward", looks)
    with pytest.raises(UserError, match="cannot be estimated"):
        trace_shape(model, "nano", context_length=16, dtype=torch.float32)


def test_on_a_gpu_a_run_takes_the_micro_batch_of_the_plan(monkeypatch):
    # No GPU is here: only what is read of one is stood in for.
    card = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=int(40e9))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    of = config("gpt2", precision="bf16")
    planned = forecast(of, MachineOptions(ranks=4, device="H100", memory=40e9)).run.horizon
    run = ResolvedRun(of, plan_horizon(of.training, 1024, 4), "bf16", on_gpu=True)
    assert planned.micro_batch_size != run.horizon.micro_batch_size
    assert fitted(run, 8192, torch.device("cuda", 0)).horizon == planned
    assert fitted(run, 8192, torch.device("cuda", 0)).config == of
    monkeypatch.setattr(card, "total_memory", int(1e9))
    assert fitted(run, 8192, torch.device("cuda", 0)).horizon.micro_batch_size == 1
    chosen = config("gpt2", precision="bf16", micro_batch_size=2)
    set_by_hand = ResolvedRun(chosen, plan_horizon(chosen.training, 1024, 4), "bf16", on_gpu=True)
    assert fitted(set_by_hand, 8192, torch.device("cuda", 0)) is set_by_hand


@pytest.mark.parametrize(("ranks", "between"), [(8, 225e9), (16, 25e9)])
def test_on_a_gpu_ranks_are_as_far_apart_as_with_its_name(monkeypatch, ranks, between):
    # No GPU is here: only what is read of one is stood in for.
    name = "NVIDIA H100 80GB HBM3"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80e9))
    here, named = (
        describe_machine(TrainingConfig(precision="bf16"), MachineOptions(ranks, device))[0] for device in (None, name)
    )
    assert here == named
    assert here.link_bandwidth == between


def test_where_no_change_is_enough_alone_all_of_them_are_named_once():
    # ZeRO 1 has 4.2 GB of states at two ranks, and a block of 1.5 GB.
    found = forecast(config("gpt2-medium", batch_size=2, micro_batch_size=1), MachineOptions(2, "A100", memory=4e9))
    assert not found.fits
    for remedy in found.remedies:
        keys = [part.partition("=")[0] for part in remedy.split(" and ")]
        assert len(keys) == len(set(keys))
