"""The expected cost of a run is printed before it starts, with a warning if it is high."""

import pytest
import torch

from pipeline.dataset.first_run import SIZES
from training.model.sizes import SIZES as SHAPES
from training.planning.cost_warnings import cost_warning, describe_duration
from training.planning.estimate import Machine
from training.planning.forecast import shape_of
from training.planning.resolved_run import resolve_run
from training.schedule import plan_horizon
from training.settings import resolve_config

CPU = Machine("this machine", False, 1e11, 1e10, 1e10, 1e9)


@pytest.mark.parametrize("name", SIZES)
def test_the_sizes_of_the_pipelines_suggestion_are_those_of_training(name):
    parameters, flops, context = SIZES[name]
    config = resolve_config(flags={"output": "x", "task": "t", "data": {"dataset": "d"}, "model": {"name": name}})
    run = resolve_run(config, plan_horizon(config.training, context, 1), torch.device("cpu"))
    shape = shape_of(run, 8192)
    assert context == shape.context_length == min(1024, SHAPES[name].positions)
    assert flops == pytest.approx(shape.flops_per_token, rel=0.1)
    assert parameters == pytest.approx(shape.parameters - shape.parameters_embedding, rel=0.1)


@pytest.mark.parametrize(("seconds", "epochs"), [(None, None), (3600, 1), (86_000, 16), (None, 4)])
def test_a_modest_run_is_not_warned_of(seconds, epochs):
    assert cost_warning(seconds, epochs, 1e6, CPU, 1) is None


def test_a_warning_says_what_is_much_and_what_would_suit():
    found = cost_warning(2.8e7, 4_000_000, 825, CPU, 1)
    for part in ("324.1 days", "4,000,000 times", "--model nano --num-tokens 3.3e3", "phf train --plan"):
        assert part in found
    assert "times" not in cost_warning(2.8e7, 1, 1e9, CPU, 1)
    assert "days" not in cost_warning(60, 100, 1e9, CPU, 1)
    assert "--model" not in cost_warning(2.8e7, None, 0, CPU, 1)
    gpu = Machine("card", True, 1e15, 1e10, 1e10, 1e9)
    assert "--model gpt2" in cost_warning(2.8e7, 1, 1e10, gpu, 8)


def test_a_model_that_cannot_be_estimated_has_no_duration():
    assert "not estimated" in describe_duration(None, 10, 10)
    assert describe_duration(2.0, 1, 10) == "about 2.0 s for 1 step, 5 tokens/s on this machine"


def test_steps_never_reach_more_than_the_machine(monkeypatch):
    from training.loop import trainer as module

    class Fake:
        peak_flops = 10.0
        world = type("World", (), {"device": torch.device("cpu")})
        engine = type("Engine", (), {"precision": "fp32"})

    trainer, share = Fake(), module.Trainer._share_of_peak
    measured = iter([40.0, 5.0])
    monkeypatch.setattr(module, "peak_flops", lambda device, precision: next(measured))
    assert share(trainer, 5.0) == 0.5
    # The machine was busy when it was measured, and is free now.
    assert share(trainer, 20.0) == 0.5
    assert share(trainer, 80.0) == 1.0
    assert share(trainer, 40.0) == 0.5
