"""A branch starts from the checkpoint of another run, with its optimiser, and only reads it."""

import shutil

import pytest
from typer.testing import CliRunner

from phf import app
from scorers.errors import StoppedError, UserError
from tests.training.jobs import COMPARABLE, StopAfter, command, figures, make_code_dataset, metrics, run_job, run_phf
from training.loop.continuation import StartOptions
from training.runs import checkpoints
from training.runs.folder import RunFolder

STEP = 4 * 32
# Dropout, so that generators count; and a warm-up that is a share of the steps.
TRUNK = {
    "training__schedule": "constant",
    "training__warmup_ratio": 0.25,
    "training__save_every": 6,
    "training__adam_epsilon": COMPARABLE,
    "model__overrides": "{resid_pdrop: 0.1}",
}


@pytest.fixture(scope="module")
def trunk(tmp_path_factory, code_dataset):
    """A run of 12 steps at a constant learning rate, with checkpoints of steps 6 and 12."""
    folder = tmp_path_factory.mktemp("trunk") / "trunk"
    run_job(code_dataset, folder, **TRUNK)
    return folder


def content(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


def branch(dataset, trunk, output, step, *options):
    """`phf train DATASET --init-from TRUNK --step N`, in this process."""
    arguments = ["train", str(dataset), "--init-from", str(trunk), "--step", str(step), "-o", str(output), *options]
    return CliRunner().invoke(app, arguments)


def test_under_the_same_schedule_a_branch_is_the_run_itself(tmp_path, code_dataset, trunk):
    before = content(trunk)
    result = branch(code_dataset, trunk, tmp_path / "run", 6)
    assert result.exit_code == 0, result.output
    assert content(trunk) == before
    assert figures(tmp_path / "run") == figures(trunk)[6:]
    facts = RunFolder(tmp_path / "run").read_facts()
    assert (facts.step, facts.horizon.steps, facts.horizon.warmup_steps, facts.origin.step) == (12, 12, 3, 6)
    weights = [(run / "model/model.safetensors").read_bytes() for run in (tmp_path / "run", trunk)]
    assert weights[0] == weights[1]
    assert "| started from | step 6 of another run |" in (tmp_path / "run/model/README.md").read_text()


def test_a_decay_branch_is_the_run_of_its_schedule(tmp_path, code_dataset, trunk):
    decay = {"training__schedule": "wsd", "training__decay_ratio": 0.4, "training__num_tokens": 10 * STEP}
    run_job(code_dataset, tmp_path / "whole", **{**TRUNK, **decay, "training__warmup_steps": 3})
    options = ["--set", "training.schedule=wsd", "--set", "training.decay_ratio=0.4", "--num-tokens", str(10 * STEP)]
    assert branch(code_dataset, trunk, tmp_path / "run", 6, *options).exit_code == 0
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")[6:]
    assert [line["tokens"] for line in metrics(tmp_path / "run")] == [step * STEP for step in range(7, 11)]


def test_it_stops_goes_on_and_goes_back_as_any_run_also_without_the_other(tmp_path, code_dataset, trunk):
    source = shutil.copytree(trunk, tmp_path / "trunk")
    for last in (8, 10):
        with pytest.raises(StoppedError):
            run_job(
                code_dataset,
                tmp_path / "run",
                options=StartOptions(origin=(str(source), 6)),
                callbacks=[StopAfter(last - 1)],
                **TRUNK,
            )
        assert checkpoints.steps(tmp_path / "run/checkpoints")[-1] == last
    assert "started from step 6" in refusal(code_dataset, tmp_path / "run", origin=(str(source), 12))
    shutil.rmtree(source)
    result = branch(code_dataset, source, tmp_path / "run", 6)
    assert result.exit_code == 0, result.output
    assert figures(tmp_path / "run") == figures(trunk)[6:]
    run_job(code_dataset, tmp_path / "run", **TRUNK, options=StartOptions(10, 1))
    assert RunFolder(tmp_path / "run").read_facts().skips == [(10, 1)]


def test_killed_before_its_first_checkpoint_it_begins_again(tmp_path, code_dataset, trunk, monkeypatch):
    def die(trainer, _):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("training.loop.trainer.Trainer._loop", die)
        run_job(code_dataset, tmp_path / "run", **TRUNK, options=StartOptions(origin=(str(trunk), 6)))
    facts = RunFolder(tmp_path / "run").read_facts()
    assert (facts.status, facts.step, facts.saved) == ("running", 6, 0)
    assert "Give --init-from and --step 6 again" in refusal(code_dataset, tmp_path / "run")
    # Also where more is asked of it by now.
    more = {**TRUNK, "training__num_tokens": 13 * STEP}
    facts, _ = run_job(code_dataset, tmp_path / "run", **more, options=StartOptions(origin=(str(trunk), 6)))
    assert figures(tmp_path / "run")[:-1] == figures(trunk)[6:]
    assert [(each.from_step, each.reached) for each in facts.history] == [(6, 6)]


def refusal(dataset, output, objective="mle", origin=None, **changes):
    with pytest.raises(UserError) as caught:
        run_job(dataset, output, objective, **{**TRUNK, **changes}, options=StartOptions(origin=origin))
    return str(caught.value)


def test_what_it_cannot_begin_with_is_refused(tmp_path, code_dataset, trunk):
    origin = (str(trunk), 6)
    assert "no checkpoint of that step; it has: 6, 12" in refusal(code_dataset, tmp_path / "a", origin=(origin[0], 5))
    less = refusal(code_dataset, tmp_path / "a", origin=origin, training__num_tokens=6 * STEP)
    assert "has no steps left there. Raise training.num_tokens, which includes the 768 tokens of that run" in less
    assert not (tmp_path / "a").exists()
    other = refusal(code_dataset, tmp_path / "b", "conditional", origin, training__batch_size=2)
    assert "the control tokens: [] there, [400, 401] here" in other
    assert "training.batch_size: 4 there, 2 here" in other
    heads = refusal(code_dataset, tmp_path / "b", origin=origin, model__overrides="{resid_pdrop: 0.1, n_head: 2}")
    assert "model.overrides: {'resid_pdrop': 0.1} there, {'resid_pdrop': 0.1, 'n_head': 2} here" in heads
    assert "inside the folder of another run" in refusal(code_dataset, trunk / "branch", origin=origin)
    assert "started at step 0" in refusal(code_dataset, trunk, origin=origin)
    source = shutil.copytree(trunk, tmp_path / "trunk")
    (source / "checkpoints/step-00000006/generators-00000.pt").write_bytes(b"")
    damaged = refusal(code_dataset, tmp_path / "c", origin=(str(source), 6))
    assert "is missing or damaged: generators-00000.pt has 0 bytes" in damaged
    for options, message in [
        (["--step", "6"], "--step needs --init-from"),
        (["--init-from", str(trunk), "--step", "6", "--model", "nano"], "leave --model out"),
        (["--skip-batches", "2"], "--skip-batches needs --from-step"),
        (["--from-step", "6", "--skip-batches", f"{10**23}"], "Input should be less than or equal"),
    ]:
        result = CliRunner().invoke(app, ["train", str(code_dataset), "-o", str(tmp_path / "d"), *options])
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())


def test_it_can_be_planned_without_an_output(code_dataset, trunk):
    arguments = ["train", str(code_dataset), "--init-from", str(trunk), "--step", "6", "--plan", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


def test_it_may_read_other_data_from_there_on(tmp_path, code_dataset, trunk):
    other = make_code_dataset(tmp_path / "other", ["textwrap", "string", "queue", "cmd"])
    result = branch(other, trunk, tmp_path / "run", 6)
    assert result.exit_code == 0, result.output
    assert figures(tmp_path / "run")[0][1] != figures(trunk)[6][1]
    assert figures(tmp_path / "run")[0][1] < figures(trunk)[0][1] - 0.2


@pytest.mark.slow
def test_it_begins_with_a_checkpoint_of_another_number_of_ranks(tmp_path, code_dataset, trunk):
    before = content(trunk)
    changes = {**TRUNK, "training__schedule": "constant"}
    arguments = command(code_dataset, tmp_path / "run", **changes)
    named = arguments.index("--model")
    arguments = [*arguments[:named], *arguments[named + 2 :], "--init-from", str(trunk), "--step", "6", "--ranks", "2"]
    done = run_phf(arguments)
    assert done.returncode == 0, done.stderr
    assert content(trunk) == before
    assert not list((tmp_path / "run/checkpoints").glob(".*"))
    # Dropout draws on each rank by itself, so losses are alike and not equal.
    assert [loss for _, loss, *_ in figures(tmp_path / "run")] == pytest.approx(
        [loss for _, loss, *_ in figures(trunk)[6:]], abs=0.05
    )
