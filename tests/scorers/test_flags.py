"""Command-line options that give a setting."""

from enum import StrEnum
from typing import Annotated

import pytest

from pipeline.commands import bench, label, preview, repair, score
from pipeline.config import ExecutionSettings, LabelConfig, ScoreConfig
from scorers.flags import Sets, given_settings, settings_of
from training.commands import evaluate, train
from training.config import TrainConfig
from training.measuring_config import EvaluationConfig


class Colour(StrEnum):
    RED = "red"


def command(
    size: Annotated[int | None, Sets("part.size")] = None,
    names: Annotated[list[str] | None, Sets("names")] = None,
    colour: Annotated[Colour | None, Sets("part.colour")] = None,
    other: int = 0,
) -> None:
    """A command without effect."""


def test_given_options_are_nested_by_key_and_the_rest_is_left_out():
    none = {"size": None, "names": [], "colour": None, "other": 5, "a local name": 1}
    assert given_settings(command, none) == {}
    assert given_settings(command, {**none, "size": 0, "colour": Colour.RED}) == {"part": {"size": 0, "colour": "red"}}
    assert given_settings(command, {**none, "names": ["a"]}) == {"names": ["a"]}


@pytest.mark.parametrize(
    ("of", "config"),
    [
        (label.label, LabelConfig),
        (preview.preview, LabelConfig),
        (bench.scorers, LabelConfig),
        (score.score, ScoreConfig),
        (repair.repair, ExecutionSettings),
        (train.train, TrainConfig),
        (evaluate.evaluate, EvaluationConfig),
    ],
)
def test_every_key_is_a_setting_of_the_configuration(of, config):
    keys = [key for _, key in settings_of(of)]
    assert keys
    for key in keys:
        *sections, last = key.split(".")
        model = config
        for section in sections:
            model = model.model_fields[section].annotation
        assert last in model.model_fields, key
