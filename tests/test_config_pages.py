"""`phf config`: every setting with its default and meaning, as text, and as a YAML file with all commented out."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from phf import app
from pipeline.config import LabelConfig, ScoreConfig
from scorers.settings import load_settings
from scorers.settings_page import settings_of, to_yaml
from training.config import TrainConfig, TrainingConfig
from training.matching.config import MatchConfig
from training.measuring_config import EvaluationConfig
from training.sweep.config import SweepConfig

GIVEN = {
    LabelConfig: {"inputs": ["corpus"], "output": "labelled", "scorers": {"pii": {"kind": "scrubadub"}}},
    ScoreConfig: {"dataset": "labelled", "scorers": {"pii": {"kind": "scrubadub"}}},
    TrainConfig: {"output": "run", "task": "pii", "data": {"dataset": "labelled"}},
    MatchConfig: {"run": "run", "output": "matched", "constraints": ["pii<=0: 1"]},
    EvaluationConfig: {},
    SweepConfig: {"dataset": "labelled", "out": "sweep", "objectives": ["mle"]},
}


@pytest.mark.parametrize("model", GIVEN)
def test_every_setting_has_a_meaning(model):
    found = settings_of(model)
    assert len(found) > (4 if model is EvaluationConfig else 15)
    assert [each.key for each in found if len(each.meaning) < 8 or not each.meaning.endswith(".")] == []
    assert len({each.key for each in found}) == len(found)


@pytest.mark.parametrize("model", GIVEN)
def test_the_yaml_file_sets_nothing_by_itself(model, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(to_yaml(settings_of(model)))
    assert max(map(len, file.read_text().splitlines())) <= 120
    assert load_settings(model, file=file, flags=GIVEN[model]) == load_settings(model, flags=GIVEN[model])


def test_an_uncommented_line_is_a_setting(tmp_path):
    lines = to_yaml(settings_of(TrainConfig)).splitlines()
    place = lines.index("  # batch_size: 64")
    lines[place] = "  batch_size: 32"
    (tmp_path / "settings.yaml").write_text("\n".join(lines))
    found = load_settings(TrainConfig, file=tmp_path / "settings.yaml", flags=GIVEN[TrainConfig])
    assert found.training == TrainingConfig(batch_size=32)


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("train", "training.batch_size  (integer >= 1; default 64)"),
        ("train", 'training.schedule  (linear | cosine | wsd | constant; default "linear")'),
        ("train", "data.dataset  (string; required)"),
        ("train", "data.mixture[].share  (number >= 0.001, < 1; required)"),
        ("train", "training.validate_every  (integer | null; default null)"),
        ("train", "data.columns  (mapping; default {})"),
        ("label", 'execution.pools.NAME.device  (string; default "cpu")'),
        ("score", "dataset  (string; required)"),
        ("sweep", "objectives[].settings  (mapping; default {})"),
        ("evaluate", "top_p  (number > 0, <= 1; default 0.9)"),
    ],
)
def test_the_command_prints_settings(part, line):
    done = CliRunner().invoke(app, ["config", part])
    assert done.exit_code == 0
    assert line in done.stdout.splitlines()


def test_settings_are_printed_as_yaml_and_as_json():
    done = CliRunner().invoke(app, ["config", "train", "--yaml"])
    assert yaml.safe_load(done.stdout) == dict.fromkeys(
        ("data", "model", "objective", "training", "evaluation", "tracking")
    )
    found = json.loads(CliRunner().invoke(app, ["config", "evaluate", "--json"]).stdout)
    assert {"key": "temperature", "kind": "number >= 0.01", "default": 0.7, "required": False}.items() <= next(
        each for each in found["settings"] if each["key"] == "temperature"
    ).items()
