"""The specification of a sweep, and its runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from scorers.errors import UserError
from scorers.settings import load_settings, parse_override
from training.measuring_config import EvaluationConfig
from training.runs.folder import RunFolder
from training.sweep.config import SweepConfig, _override, expand

SPEC: dict[str, Any] = {
    "dataset": "labelled",
    "out": "sweep",
    "objectives": ["mle", {"conditional": {"objective": {"drop_tags": 0.25}}}],
    "seeds": [1, 2],
    "settings": {"task": "pii", "model": {"name": "nano"}, "training": {"num_tokens": "1e6"}},
}


def load(folder: Path, *overrides: str, **changes: Any) -> SweepConfig:
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({**SPEC, **changes}, sort_keys=False))
    return load_settings(SweepConfig, file=file, overrides=overrides)


def test_each_objective_is_trained_with_each_seed(tmp_path: Path) -> None:
    runs = expand(load(tmp_path))
    assert [run.name for run in runs] == ["mle-s1", "mle-s2", "conditional-s1", "conditional-s2"]
    assert [run.config.output for run in runs] == [f"sweep/{run.name}" for run in runs]
    assert [run.config.training.seed for run in runs] == [1, 2, 1, 2]
    assert {run.config.training.num_tokens for run in runs} == {1_000_000}
    # Its own setting overrides the paper's 0.01, and the paper's stays that of the other.
    assert [run.config.objective.drop_tags for run in runs] == [None, None, 0.25, 0.25]
    assert runs[0].without_seed == runs[1].without_seed != runs[2].without_seed


def test_the_grid_overrides_all_else_and_names_the_folders(tmp_path: Path) -> None:
    grid = {"training.learning_rate": ["1e-3", 0.002], "objective": {"drop_tags": [0, 0.5]}}
    runs = expand(load(tmp_path, "grid.training.learning_rate=[1e-3, 4e-3]", grid=grid, seeds=[7]))
    names = [run.name for run in runs if run.config.objective.name == "conditional"]
    assert names == [
        f"conditional-learning_rate={rate}-drop_tags={drop}-s7" for rate in ("1e-3", "4e-3") for drop in (0, 0.5)
    ]
    found = [(run.config.training.learning_rate, run.config.objective.drop_tags) for run in runs[4:]]
    assert found == [(0.001, 0), (0.001, 0.5), (0.004, 0), (0.004, 0.5)]
    assert runs[-1].values == {"training.learning_rate": "4e-3", "objective.drop_tags": 0.5}


def test_an_objective_given_twice_is_named_by_its_own_settings(tmp_path: Path) -> None:
    twice = ["conditional", {"conditional": {"objective": {"drop_tags": 0.25}}}]
    assert [run.name for run in expand(load(tmp_path, objectives=twice, seeds=[1]))] == [
        "conditional-s1",
        "conditional-drop_tags=0.25-s1",
    ]
    with pytest.raises(UserError, match="Two runs of the sweep would have the folder mle-s1"):
        expand(load(tmp_path, objectives=["mle", "mle"], seeds=[1]))


def test_guidance_is_for_conditional_runs_alone(tmp_path: Path) -> None:
    settings = {**SPEC["settings"], "evaluation": {"top_p": 1.0}}
    runs = expand(load(tmp_path, settings=settings, evaluate={"guidance": 2, "num_samples": 8}, seeds=[1]))
    common = EvaluationConfig(top_p=1.0, num_samples=8)
    assert [run.evaluation for run in runs] == [common, common.model_copy(update={"guidance": 2.0})]
    assert runs[0].evaluate == ("evaluate", "sweep/mle-s1", "--set", "num_samples=8")
    assert runs[1].evaluate == ("evaluate", "sweep/conditional-s1", "--set", "guidance=2.0", "--set", "num_samples=8")
    runs = expand(load(tmp_path, "guidance_sweep=[1,1.5]", evaluate={"guidance": 2, "num_samples": 8}, seeds=[1]))
    assert runs[0].sweep_guidance == ()
    assert runs[1].sweep_guidance == (
        "evaluate", "sweep/conditional-s1", "--guidance-sweep", "1,1.5", "--set", "num_samples=8",
    )  # fmt: skip


def test_runs_are_compared_with_the_reference_of_their_seed_and_values(tmp_path: Path) -> None:
    grid = {"training.learning_rate": ["1e-3", "2e-3"]}
    runs = expand(load(tmp_path, "guidance_sweep=[2]", reference="mle", grid=grid, evaluate={"guidance": 2}))
    assert [run.reference for run in runs[:4]] == [None] * 4
    assert [run.compare_with for run in runs[:4]] == [()] * 4
    place = "sweep/mle-learning_rate=2e-3-s1"
    output = "sweep/conditional-learning_rate=2e-3-s1"
    assert runs[6].reference == RunFolder(Path(place))
    assert runs[6].compare_with == ("evaluate", output, "--reference", place)
    assert runs[6].sweep_guidance == ("evaluate", output, "--guidance-sweep", "2", "--reference", place)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "awr"}, "reference: awr is not among the objectives"),
        ({"seed": [1]}, "seed: no such setting; did you mean 'seeds'"),
        ({"objectives": ["mel"]}, "objectives.0: Input should be 'mle'"),
        ({"objectives": []}, "objectives: needs at least one"),
        ({"objectives": [{"mle": {}, "awr": {}}]}, "objectives.0: give a name, or one name with its own settings"),
        ({"seeds": []}, "seeds: needs at least one"),
        ({"seeds": [-1]}, "seeds.0: Input should be greater than or equal to 0"),
        (
            {"settings": {"training": {"seed": 1}}},
            "settings: training.seed is not a setting here: seeds",
        ),
        (
            {"grid": {"data.dataset": ["a"]}},
            "grid: data.dataset is not a setting here: dataset",
        ),
        ({"grid": {"training.learning_rate": 1}}, "grid: training.learning_rate needs a list of values"),
        ({"settings": {"training.seed": 1}}, "settings: write 'training.seed' nested"),
        ({"evaluate": {"samples": 3}}, "evaluate.samples: no such setting; did you mean 'num_samples'"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_its_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, **changes)
    assert message in str(error.value)
    # One line says which file, one which key.
    assert len(str(error.value).splitlines()) == 2


def test_targets_of_an_objective_reach_the_runs(tmp_path: Path) -> None:
    targets = {"toxicity<=0.001": 0.9, "pii": 0.1}
    (run,) = expand(load(tmp_path, objectives=[{"target": {"objective": {"targets": targets}}}], seeds=[1]))
    assert run.config.objective.targets == targets
    assert f"objective.targets={json.dumps(targets)}" in run.train


def test_wrong_settings_of_runs_are_listed_once_with_the_runs(tmp_path: Path) -> None:
    objectives = ["mle", {"awr": {"objective": {"gamma": 1}}}]
    with pytest.raises(UserError) as error:
        expand(load(tmp_path, objectives=objectives))
    assert str(error.value).startswith("awr-s1 and 1 more: The configuration is not valid")
    assert "objective.gamma: no such setting" in str(error.value)
    with pytest.raises(UserError, match="too long for a file system"):
        expand(load(tmp_path, grid={"model.name": ["a" * 300]}))


@pytest.mark.parametrize("value", [1, 0.5, 1e-7, True, None, "tiny", "a: b", "[x", "", "a=b", [1, "b"], {}, "1e-3"])
def test_a_setting_keeps_its_value_on_the_command_line(value: Any) -> None:
    expected = 0.001 if value == "1e-3" else value
    assert parse_override(_override("a.b", value)) == {"a": {"b": expected}}
