import pytest

from scorers.errors import UserError
from training.commands.train_start import columns
from training.settings import fill_in, resolve_config

FLAGS = {"output": "runs/a", "task": "toxicity", "data": {"dataset": "labelled"}}


def test_a_preset_is_overridden_by_file_flags_and_set(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("objective: {name: awr, alpha: 0.4}\ntraining: {batch_size: 32, learning_rate: 0.1, seed: 1}\n")
    flags = {**FLAGS, "training": {"learning_rate": 0.2, "seed": None}}
    config = resolve_config(file, flags, ["training.learning_rate=0.3"])
    assert config.objective.beta == 10  # the preset of awr on toxicity
    assert config.objective.alpha == 0.4
    assert config.training.batch_size == 32
    assert config.training.learning_rate == 0.3
    assert config.training.seed == 1  # a flag of None was not given


def test_columns_of_flags_replace_those_of_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("data: {columns: {toxicity: 2, style: 1}, held_out: 0.2}\n")

    def resolved(*given):
        return resolve_config(file, {**FLAGS, "data": {"dataset": "labelled", **columns([*given])}}).data

    assert resolved("pii", "toxicity").columns == {"pii": 1, "toxicity": 1}
    assert resolved("pii", "toxicity").held_out == 0.2
    assert resolved().columns == {"toxicity": 2, "style": 1}


@pytest.mark.parametrize(
    ("file", "flags", "overrides"),
    [
        ("task: pep8\nobjective: {name: awr}", {}, []),
        ("task: pii\nobjective: {name: mle}", {"task": "pep8"}, ["objective.name=awr"]),
        ("objective: {name: rwr}", {"objective": {"name": "awr"}}, ["task=pep8"]),
    ],
)
def test_the_preset_follows_the_effective_task_and_objective(tmp_path, file, flags, overrides):
    path = tmp_path / "run.yaml"
    path.write_text(file)
    config = resolve_config(path, {"output": "o", "data": {"dataset": "d"}, **flags}, overrides)
    assert (config.task, config.objective.name) == ("pep8", "awr")
    assert (config.objective.alpha, config.training.batch_size) == (0.05, 256)


def test_thresholds_of_presets_are_not_settings():
    assert resolve_config(flags=FLAGS, overrides=["objective.name=conditional"]).objective.threshold is None


def test_a_threshold_of_zero_is_kept():
    config = resolve_config(flags=FLAGS, overrides=["objective.name=unlikelihood", "objective.threshold=0"])
    assert config.objective.threshold == 0.0


@pytest.mark.parametrize(
    ("overrides", "length"),
    [
        ([], 1024),
        (["model.name=tiny"], 256),
        (["model.name=gpt2-xl"], 1024),
        (["model.name=tiny", "data.context_length=64"], 64),
        (["model.name=tiny", "model.overrides.n_positions=2048"], 1024),
    ],
)
def test_the_context_is_1024_tokens_or_the_models_limit(overrides, length):
    assert resolve_config(flags=FLAGS, overrides=overrides).data.context_length == length


def test_the_column_is_the_tasks_unless_given():
    assert resolve_config(flags=FLAGS).data.column == "toxicity"
    assert resolve_config(flags=FLAGS, overrides=["data.column=rude"]).data.column == "rude"
    config = resolve_config(flags=FLAGS)
    assert fill_in(config) == config


@pytest.mark.parametrize(
    ("flags", "overrides", "message"),
    [
        (FLAGS, ["training.num_token=5"], r"training\.num_token: no such setting; did you mean 'num_tokens'"),
        (FLAGS, ["objective.name=ppo"], r"objective\.name.*'awr'"),
        (FLAGS, ["objective.beta=0"], r"objective\.beta.*greater than 0"),
        ({"output": "o", "data": {"dataset": "d"}}, [], "task: required"),
        ({"output": "o", "task": "pii"}, [], "data: required"),
        (FLAGS, ["objective=awr"], "objective"),
        (FLAGS, ["data.held_out_seed=-1"], r"data\.held_out_seed.*greater than or equal to 0"),
        (FLAGS, ["training.seed=20250101123456"], r"training\.seed.*less than 4294967296"),
        ({**FLAGS, "training": {"seed": -1}}, [], r"training\.seed.*greater than or equal to 0"),
        (FLAGS, ["evaluation.seed=4294967296"], r"evaluation\.seed.*less than 4294967296"),
        (FLAGS, ["evaluation.temperature=.inf"], r"evaluation\.temperature.*finite"),
        (FLAGS, ["evaluation.temperature=1e-40"], r"evaluation\.temperature.*greater than or equal to 0\.01"),
        (FLAGS, ["evaluation.num_samples=1e23"], r"evaluation\.num_samples.*less than or equal to 10000000"),
        (FLAGS, ["evaluation.guidance=[1, 2]"], r"evaluation\.guidance.*number"),
        (FLAGS, ["objective.threshold=.nan"], r"objective\.threshold.*finite"),
        (FLAGS, ["training.seed=2024-13-45"], r"training\.seed: the value '2024-13-45' is not valid YAML"),
        (FLAGS, ["training.seed=!!int x"], r"training\.seed: .* is not valid YAML"),
        (FLAGS, ["model.overrides=&x {a: *x}"], r"model\.overrides: .* is not valid YAML"),
        (FLAGS, ["model.overrides.a=&x [*x]"], r"model\.overrides\.a: .* is not valid YAML"),
        (FLAGS, ["data.mixture={dataset: b, share: 0.1}"], r"data\.mixture: Input should be a list"),
        (FLAGS, ["training.num_tokens=1.5e-1"], r"training\.num_tokens"),
        (FLAGS, ["model.name=gigantic/model/of/mine"], "gigantic"),
    ],
)
def test_invalid_settings_are_named(flags, overrides, message):
    with pytest.raises(UserError, match=message):
        resolve_config(flags=flags, overrides=overrides)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"training: {seed: 2024-13-45}", r"run\.yaml is not valid YAML: month must be in"),
        (b"model: &x {overrides: *x}", r"run\.yaml is not valid YAML: it is nested too deeply, or contains itself"),
        (b"output: caf\xe9", r"run\.yaml is not UTF-8 text \(byte 11\)"),
        (b"training: {num_tokens: 1.5e0}", r"training\.num_tokens: Input should be a valid integer"),
    ],
)
def test_an_empty_file_is_refused(tmp_path, content, message):
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        resolve_config(file, FLAGS)


def test_numbers_in_a_file_are_read_as_in_set(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("training: {num_tokens: 1e6, batch_size: 6.4e+1}")
    training = resolve_config(file, FLAGS).training
    assert (training.num_tokens, training.batch_size) == (1_000_000, 64)
