"""What follows from the settings of a run is decided once, and nothing is left open behind it."""

import pytest
import torch
from pydantic import ValidationError

from scorers.errors import UserError
from training.config import ResolvedConfig
from training.planning.resolved_run import resolve_run
from training.schedule import plan_horizon
from training.settings import resolve_config

CPU = torch.device("cpu")


def config(**training: object) -> ResolvedConfig:
    flags = {"output": "o", "task": "toxicity", "data": {"dataset": "d"}, "model": {"name": "nano"}}
    return resolve_config(None, {**flags, "training": {"batch_size": 24, "num_tokens": 24 * 128 * 5, **training}})


def test_column_and_context_length_are_known() -> None:
    given = {**config().model_dump(), "model": {"name": "nano"}}
    for key in ("column", "context_length"):
        with pytest.raises(ValidationError, match=key):
            ResolvedConfig.model_validate({**given, "data": {**given["data"], key: None}})
    mixed = {**given["data"], "mixture": [{"dataset": "e", "share": 0.5, "column": None}]}
    with pytest.raises(ValidationError, match="column"):
        ResolvedConfig.model_validate({**given, "data": mixed})


def test_precision_and_horizon_follow_from_the_settings_and_the_device() -> None:
    of = config()
    run = resolve_run(of, plan_horizon(of.training, of.data.context_length, 2), CPU)
    assert (run.precision, run.on_gpu, run.config) == ("fp32", False, of)
    assert (run.horizon.steps, run.horizon.ranks, run.horizon.micro_batch_size) == (5, 2, 6)
    settings = run.deepspeed(parameters=1001)
    assert settings["train_micro_batch_size_per_gpu"] == 6
    assert settings["zero_optimization"]["reduce_bucket_size"] == 1002


def test_settings_that_the_device_or_deepspeed_cannot_train_with_are_refused() -> None:
    for changes, message in ({"precision": "fp16"}, "fp16 needs a GPU"), ({"offload": "parameters"}, "ZeRO stage 3"):
        of = config(**changes)
        with pytest.raises(UserError, match=message):
            resolve_run(of, plan_horizon(of.training, of.data.context_length, 1), CPU)


def test_a_micro_batch_changes_the_shape_of_the_batch_and_no_setting() -> None:
    of = config()
    run = resolve_run(of, plan_horizon(of.training, of.data.context_length, 1), CPU)
    smaller = run.with_micro_batch(3)
    assert (smaller.horizon.micro_batch_size, smaller.horizon.accumulation) == (3, 8)
    assert (smaller.horizon.steps, smaller.config) == (run.horizon.steps, of)
    assert run.with_micro_batch(run.horizon.micro_batch_size) == run
    with pytest.raises(UserError, match="does not divide"):
        run.with_micro_batch(7)


def test_other_ranks_and_settings_give_another_horizon() -> None:
    of = config()
    run = resolve_run(of, plan_horizon(of.training, of.data.context_length, 1), CPU)
    assert run.changed(4, micro_batch_size=2).horizon.accumulation == 3
    assert run.changed(batch_size=12).horizon.steps == 10
    with pytest.raises(UserError, match="cannot be divided among 5 ranks"):
        run.changed(5)
