"""Counts derived from shares use the decimal number as written, not its nearest binary fraction."""

import math

import pytest

from training.config import ObjectiveConfig, TrainingConfig
from training.data.phases import plan_phases
from training.schedule import learning_rate, warmup_steps
from training.settings import resolve_config

FLAGS = {"output": "run", "task": "toxicity", "data": {"dataset": "labelled"}, "model": {"name": "nano"}}


@pytest.mark.parametrize(
    ("ratio", "steps", "expected"), [(0.07, 100, 7), (0.14, 50, 7), (0.55, 100, 55), (0.28, 100, 28), (1e-05, 1, 1)]
)
def test_the_warm_up_has_the_exact_share_of_steps(ratio, steps, expected):
    assert steps == 1 or math.ceil(ratio * steps) == expected + 1  # what binary fractions would give
    config = TrainingConfig(learning_rate=1.0, warmup_ratio=ratio)
    assert warmup_steps(config, steps) == expected
    assert learning_rate(config, expected - 1, steps) == 1.0
    if expected > 1:
        assert learning_rate(config, expected - 2, steps) == pytest.approx((expected - 1) / expected)


def test_the_decay_has_the_exact_share_of_steps():
    config = TrainingConfig(learning_rate=1.0, warmup_ratio=0, schedule="wsd", decay_ratio=0.07)
    assert next(step for step in range(100) if learning_rate(config, step, 100) < 1.0) == 94


@pytest.mark.parametrize(("share", "steps", "expected"), [(0.575, 100, 58), (0.145, 100, 14), (0.29, 100, 29)])
def test_phases_have_the_exact_share_of_steps(share, steps, expected):
    first, second = plan_phases(ObjectiveConfig(name="conditional", starts_at=share), steps)
    assert (first.steps, second.steps) == (expected, steps - expected)
    _, last = plan_phases(ObjectiveConfig(name="conditional", cooldown=share), steps)
    assert last.steps == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3.3e9", 3_300_000_000), ("9007199254740993", 2**53 + 1), ("9.007199254740993e15", 2**53 + 1), ("1e23", 10**23)],
)
def test_numbers_of_tokens_are_read_exactly(tmp_path, text, expected):
    file = tmp_path / "run.yaml"
    file.write_text(f"training: {{num_tokens: {text}}}")
    for config in (
        resolve_config(flags={**FLAGS, "training": {"num_tokens": text}}),
        resolve_config(flags=FLAGS, overrides=[f"training.num_tokens={text}"]),
        resolve_config(file, FLAGS),
    ):
        assert config.training.num_tokens == expected
