"""Settings from files, flags and --set: what is refused, and in which words."""

import os
import threading
from pathlib import Path

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from phf import app
from pipeline.options import label_config, score_config
from scorers.errors import UserError
from scorers.settings import load_settings, read_yaml, validate
from training.config import TrainConfig
from training.settings import resolve_config

TRAIN = {"output": "run", "task": "toxicity", "data": {"dataset": "labelled"}}
LABEL = {"inputs": ["corpus"], "output": "labelled"}


@pytest.fixture
def pipe(tmp_path):
    """Return a function that makes a pipe from which a text can be read once."""

    def make(text: str) -> Path:
        path = tmp_path / "pipe"
        os.mkfifo(path)
        threading.Thread(target=lambda: path.write_text(text), daemon=True).start()
        return path

    return make


def test_the_settings_of_a_run_may_come_through_a_pipe(pipe):
    config = resolve_config(pipe("objective: {name: awr}\ntraining: {batch_size: 7}"), TRAIN)
    assert (config.objective.name, config.training.batch_size) == ("awr", 7)


def test_the_settings_of_a_job_may_come_through_a_pipe(pipe):
    config = label_config(LABEL, config=pipe("scorers: {toxicity: linear}\ntext_field: body"))
    assert (config.text_field, config.scorers["toxicity"].kind) == ("body", "linear")


def test_a_pipe_that_was_read_before_is_refused(pipe):
    with pytest.raises(UserError, match="pipe without content"):
        read_yaml(pipe(""))
    assert read_yaml(Path(os.devnull)) == {}


@pytest.mark.parametrize(
    "level", ["&a{0} [*a{1},*a{1},*a{1},*a{1},*a{1},*a{1},*a{1},*a{1}]", "&a{0} {{<<: [*a{1},*a{1},*a{1},*a{1}]}}"]
)
def test_aliases_of_aliases_do_not_fill_the_memory(level, tmp_path):
    # Of 60 levels, nothing could be built.
    first = "x" if "<<" not in level else "{k: 1}"
    lines = [f"k0: &a0 {first}", *(f"k{each}: {level.format(each, each - 1)}" for each in range(1, 60))]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"bomb.yaml is not valid YAML: its aliases repeat more than 1,000,000 values"):
        read_yaml(tmp_path / "bomb.yaml")


def test_aliases_repeat_values(tmp_path):
    (tmp_path / "file.yaml").write_text("a: &a {x: [1, 2]}\nb: *a\nc: {<<: *a, y: 3}\n")
    inner = {"x": [1, 2]}
    assert read_yaml(tmp_path / "file.yaml") == {"a": inner, "b": inner, "c": {**inner, "y": 3}}


def test_a_key_that_is_given_twice_is_refused(tmp_path):
    (tmp_path / "twice.yaml").write_text("a: 1\nb: {c: 1, d: 2, c: 3}\n")
    with pytest.raises(UserError, match=r"twice.yaml, line 2 is not valid YAML: the key 'c' is given twice"):
        read_yaml(tmp_path / "twice.yaml")


def test_a_file_without_end_is_refused(tmp_path):
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="more than the 16,777,216 bytes that settings may have"):
        read_yaml(tmp_path / "endless.yaml")


@pytest.mark.parametrize("command", ["label", "score"])
def test_the_printed_yaml_is_a_file_for_config(command, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(CliRunner().invoke(app, ["config", command, "--yaml"]).stdout)
    assert label_config(LABEL, scorers=["pii"], config=file if command == "label" else None) == label_config(
        LABEL, scorers=["pii"]
    )
    if command == "score":
        assert score_config({"dataset": "x"}, scorers=["pii"], config=file).thresholds == {}


def test_two_formats_are_refused():
    done = CliRunner().invoke(app, ["config", "label", "--yaml", "--json"])
    assert (done.exit_code, done.stdout) == (2, "")


def test_an_option_replaces_the_whole_scorer_of_its_column(tmp_path):
    file = tmp_path / "label.yaml"
    file.write_text("scorers: {toxicity: {kind: detoxify, model: unbiased}, pii: scrubadub}")
    config = label_config(LABEL, scorers=["toxicity=linear"], config=file)
    assert {column: (spec.kind, spec.options) for column, spec in config.scorers.items()} == {
        "toxicity": ("linear", {}),
        "pii": ("scrubadub", {}),
    }


def test_set_alone_may_give_the_scorers():
    for override in ("scorers={toxicity: linear}", "scorers.toxicity=linear", "scorers.toxicity.kind=linear"):
        assert label_config(LABEL, overrides=[override]).scorers["toxicity"].kind == "linear"
    for overrides in ([], ["scorers={}"]):
        with pytest.raises(UserError, match="No scorer is given"):
            label_config(LABEL, overrides=overrides)


@pytest.mark.parametrize(
    ("content", "scorers", "problem"),
    [
        ("scorers: [toxicity]", ["toxicity=linear"], "scorers.toxicity is given, and scorers is also given as a list"),
        ("execution: {pools: {pii: cuda}}", [], "is also given as the value 'cuda', which has no 'max'"),
        ("execution: {threads: 0}", [], "label.yaml, flags or --set):\n  execution.threads: Input should be greater"),
        ("execution: {threads: true}", [], "execution.threads: Input should be a number, not true or false"),
        ("thresholds: {pii: true}", [], "thresholds.pii: Input should be a number, not true or false"),
        (
            "thresholds: {pii: [1]}",
            [],
            "\n  thresholds.pii: Input should be a valid number, or a valid string",
        ),
        ("scorers: {pii: 5}", [], "scorers.pii: is a section of settings, not a value: write scorers.pii.kind=5"),
        ("execution: {pools: [pii]}", [], "execution.pools: Input should be a mapping"),
        ("execution: {pools: {pii: {mim: 1}}}", [], "execution.pools.pii.mim: no such setting; did you mean 'min'?"),
    ],
)
def test_settings_of_a_job_that_are_refused(content, scorers, problem, tmp_path):
    file = tmp_path / "label.yaml"
    file.write_text(content)
    overrides = ["execution.pools.pii.max=2"] if "cuda" in content else []
    if not scorers and "scorers" not in content:
        scorers = ["pii"]
    with pytest.raises(UserError) as caught:
        label_config(LABEL, scorers=scorers, config=file, overrides=overrides)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("training.batch_size=true", "training.batch_size: Input should be a number, not true or false (given: True)"),
        ("training.learning_rate=true", "training.learning_rate: Input should be a number"),
        ("data.mixture=[{dataset: a, share: 0.1, threshold: true}]", "data.mixture.0.threshold: Input should be a num"),
        ("data.mixture=[{dataset: a, share: 0.1, column: ''}]", "data.mixture.0.column: String should have at least"),
        ("data.mixture=[code]", "data.mixture.0: is a section of settings, not a value: write {dataset: code}"),
        ("data.mixture=[{data: code}]", "data.mixture.0.data: no such setting; did you mean 'dataset'?"),
        ("data.column=''", "data.column: String should have at least 1 character"),
        ("objective=conditional", "objective: is a section of settings, not a value: write objective.name=conditional"),
        ("objective=[1]", "objective: is a section of settings, not a value: write objective.name=…"),
        ("objective.mask_above=[1]", "objective.mask_above: Input should be a valid number, or a valid string"),
    ],
)
def test_settings_of_a_run_that_are_refused(override, problem):
    with pytest.raises(UserError) as caught:
        load_settings(TrainConfig, defaults=TRAIN, overrides=[override])
    assert problem in str(caught.value)


def test_booleans_stay_where_they_belong():
    given = ["training.compile=true", "model.overrides.tie_word_embeddings=false"]
    config = load_settings(TrainConfig, defaults=TRAIN, overrides=given)
    assert config.training.compile is True
    assert config.model.overrides == {"tie_word_embeddings": False}


def test_a_boolean_is_no_number_in_the_options_of_a_scorer():
    class Options(BaseModel):
        limit: int | str = 1
        strict: bool = False

    assert validate(Options, {"limit": 0, "strict": True}, "Invalid").strict
    with pytest.raises(UserError, match=r"Invalid:\n  limit: Input should be a number"):
        validate(Options, {"limit": False}, "Invalid")
