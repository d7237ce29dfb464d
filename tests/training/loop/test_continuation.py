"""An extended run equals the longer run; a run that goes back sets aside its later part, intact."""

import json
import shutil

import pytest

from scorers.errors import UserError
from tests.training.jobs import figures, metrics, run_job
from training.config import TrainingConfig
from training.loop.continuation import StartOptions
from training.runs import best, checkpoints
from training.runs.folder import RunFolder
from training.runs.report import run_fingerprint
from training.schedule import learning_rate

STEP = 4 * 32
CONSTANT = {"training__schedule": "constant", "training__warmup_steps": 3, "training__save_every": 4}
WSD = {"training__schedule": "wsd", "training__warmup_steps": 3, "training__decay_ratio": 0.25}


def weights(run):
    return (run / "model" / "model.safetensors").read_bytes()


def copied(run, folder):
    return shutil.copytree(run, folder / "run")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, code_dataset):
    """Runs of 8 and 16 steps under both schedules, with dropout, so that random generators matter."""
    folder = tmp_path_factory.mktemp("runs")
    changes = {"model__overrides": "{resid_pdrop: 0.1}"}
    for name, schedule in (("constant", CONSTANT), ("wsd", WSD)):
        for steps in (8, 16):
            given = {**schedule, **changes, "training__num_tokens": steps * STEP}
            run_job(code_dataset, folder / f"{name}-{steps}", **given)
    return folder, changes


def test_a_run_extended_under_a_constant_rate_is_the_longer_run(tmp_path, runs, code_dataset):
    folder, changes = runs
    run = copied(folder / "constant-8", tmp_path)
    shorter = weights(run)
    for made in ("evaluation/report.json", "exports/step-00000004/config.json", "exports/step-00000012/config.json"):
        (run / made).parent.mkdir(parents=True)
        (run / made).touch()
    facts, printed = run_job(code_dataset, run, **CONSTANT, **changes, training__num_tokens=16 * STEP)
    assert "from step 8 on: extended from 8 to 16 steps" in printed
    assert figures(run) == figures(folder / "constant-16")
    assert weights(run) == weights(folder / "constant-16") != shorter
    assert (facts.status, facts.step, facts.horizon.steps) == ("finished", 16, 16)
    (went_on,) = facts.history
    assert (went_on.from_step, went_on.steps, went_on.set_aside) == (8, (8, 16), "set-aside/1")
    aside = run / "set-aside" / "1"
    assert weights(aside) == shorter
    assert not (run / "evaluation").exists()
    assert (aside / "evaluation/report.json").exists()
    assert [each.name for each in (run / "exports").iterdir()] == ["step-00000004"]
    assert RunFolder(aside).read_facts() == RunFolder(folder / "constant-8").read_facts()
    assert run_fingerprint(RunFolder(run)) != run_fingerprint(RunFolder(aside))
    assert "16 steps, 2,048 tokens" in (run / "model" / "README.md").read_text()
    # What was deleted is not taken for what is set aside later.
    shutil.rmtree(aside)
    changes = {**CONSTANT, **changes}
    facts, _ = run_job(code_dataset, run, **changes, training__num_tokens=16 * STEP, options=StartOptions(12))
    assert [each.set_aside for each in facts.history] == ["set-aside/1", "set-aside/2"]
    # The same command, and a finished run.
    assert "is finished (16 steps)" in run_job(code_dataset, run, **changes, training__num_tokens=2048)[1]
    with pytest.raises(UserError, match=r"training\.num_tokens: 2048 in the run, 1024 now"):
        run_job(code_dataset, run, **changes, training__num_tokens=8 * STEP)


def test_a_run_extended_under_wsd_goes_on_from_before_its_decay(tmp_path, runs, code_dataset):
    folder, changes = runs
    run = copied(folder / "wsd-8", tmp_path)
    assert checkpoints.steps(run / "checkpoints") == [6, 8]
    shorter = figures(run)
    facts, printed = run_job(code_dataset, run, **WSD, **changes, training__num_tokens=16 * STEP)
    assert "from step 6 on: extended from 8 to 16 steps" in printed
    assert figures(run) == figures(folder / "wsd-16")
    assert weights(run) == weights(folder / "wsd-16")
    aside = run / "set-aside" / "1"
    assert figures(aside) == shorter
    assert checkpoints.steps(aside / "checkpoints") == [8]
    assert checkpoints.steps(run / "checkpoints") == [12, 16]
    assert facts.history[0].reached == 8


def test_a_run_keeps_the_steps_of_warm_up_that_it_began_with(tmp_path, code_dataset):
    changes = {"training__schedule": "constant", "training__warmup_ratio": 0.5, "training__validate_every": 4}
    shorter, _ = run_job(code_dataset, tmp_path / "run", **changes, training__num_tokens=4 * STEP)
    facts, _ = run_job(code_dataset, tmp_path / "run", **changes, training__num_tokens=8 * STEP)
    assert facts.horizon.warmup_steps == 2
    # Otherwise the curve of its validation would not be one.
    assert (facts.validation.tokens, facts.validation.bytes) == (shorter.validation.tokens, shorter.validation.bytes)
    rates = [line["learning_rate"] for line in metrics(tmp_path / "run") if "loss" in line]
    assert rates == [0.0015, *[0.003] * 7]
    same = {**changes, "training__warmup_steps": 2, "training__num_tokens": 8 * STEP}
    assert "is finished" in run_job(code_dataset, tmp_path / "run", **same)[1]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_other_schedules_are_not_extended_and_it_says_why(tmp_path, code_dataset, schedule):
    run_job(code_dataset, tmp_path / "run", training__schedule=schedule, training__num_tokens=2 * STEP)
    before = (tmp_path / "run/run.json").read_bytes()
    with pytest.raises(UserError, match=f"cannot be extended: under training.schedule={schedule}") as caught:
        run_job(code_dataset, tmp_path / "run", training__schedule=schedule, training__num_tokens=4 * STEP)
    assert caught.value.exit_code == 2
    assert (tmp_path / "run/run.json").read_bytes() == before


def test_where_no_checkpoint_from_before_the_decay_is_kept_it_is_refused(tmp_path, runs, code_dataset):
    folder, changes = runs
    run = copied(folder / "wsd-8", tmp_path)
    shutil.rmtree(run / "checkpoints/step-00000006")
    with pytest.raises(UserError, match="began to decay after step 6, and there is no intact checkpoint up to"):
        run_job(code_dataset, run, **WSD, **changes, training__num_tokens=16 * STEP)
    assert not (run / "set-aside").exists()


def test_phases_are_those_of_the_longer_run(tmp_path, code_dataset):
    changes = {**CONSTANT, "training__keep_checkpoints": 1, "objective__cooldown": 0.25}
    run_job(code_dataset, tmp_path / "run", "conditional", **changes, training__num_tokens=8 * STEP)
    assert checkpoints.steps(tmp_path / "run/checkpoints") == [6, 8]
    facts, _ = run_job(code_dataset, tmp_path / "run", "conditional", **changes, training__num_tokens=16 * STEP)
    run_job(code_dataset, tmp_path / "longer", "conditional", **changes, training__num_tokens=16 * STEP)
    assert [(phase.name, phase.steps) for phase in facts.phases] == [("preferences", 12), ("cooldown", 4)]
    assert figures(tmp_path / "run") == figures(tmp_path / "longer")


LOWER = {"training__learning_rate": 1e-3}


def test_a_run_goes_back_to_an_earlier_step_with_other_settings_and_without_some_data(tmp_path, runs, code_dataset):
    folder, changes = runs
    run, options = copied(folder / "constant-16", tmp_path), StartOptions(8, skip_batches=3)
    changes = {**CONSTANT, **changes, "training__num_tokens": 16 * STEP}
    best.record(run / "checkpoints", 16, {"loss": 1.0})
    with pytest.raises(UserError, match=r"no checkpoint of that step; it has: 12, 16"):
        run_job(code_dataset, run, options=StartOptions(5), **changes)
    options = StartOptions(12, skip_batches=3)
    before = figures(run)
    facts, printed = run_job(code_dataset, run, options=options, **{**changes, **LOWER})
    assert "training.learning_rate 0.003 until then, 0.001 since; 3 batches left out" in printed
    assert figures(run)[:12] == before[:12]
    assert [rate for _, _, rate, _ in figures(run)[12:]] == [1e-3] * 4
    # The data that comes after those that are left out: its loss is that of other blocks.
    assert figures(run)[12][1] != before[12][1]
    assert facts.skips == [(12, 3)]
    (went_back,) = facts.history
    assert went_back.changed == {"training.learning_rate": (0.003, 0.001)}
    assert (went_back.from_step, went_back.reached, went_back.asked) == (12, 16, True)
    aside = RunFolder(run / "set-aside" / "1")
    assert figures(aside.path) == before
    assert checkpoints.steps(aside.checkpoints) == [16]
    assert best.read(aside.checkpoints) == {16: {"loss": 1.0}}
    assert best.read(run / "checkpoints") == {}
    # The same command again does not go back again; one without --from-step goes on too, with the settings of now.
    again, printed = run_job(code_dataset, run, options=options, **{**changes, **LOWER})
    assert ("is finished" in printed, again.history) == (True, facts.history)
    assert "is finished" in run_job(code_dataset, run, **{**changes, **LOWER})[1]
    with pytest.raises(UserError, match=r"training\.learning_rate: 0\.001 in the run, 0\.003 now"):
        run_job(code_dataset, run, **changes)
    with pytest.raises(UserError, match=r"training\.seed: 42 in the run, 1 now"):
        run_job(code_dataset, run, options=StartOptions(12), **changes, training__seed=1)


def test_batches_that_are_left_out_are_the_next_ones(tmp_path, runs, code_dataset):
    folder, changes = runs
    run = copied(folder / "constant-16", tmp_path)
    # A rate of nothing: the weights stay, so each loss is that of its blocks alone.
    still = {**CONSTANT, **changes, "training__num_tokens": 16 * STEP, "training__learning_rate": 1e-30}
    still |= {"model__overrides": "{}", "training__weight_decay": 0}
    shutil.rmtree(run)
    run_job(code_dataset, run, **still)
    whole = [line["loss"] for line in metrics(run)]
    run_job(code_dataset, run, options=StartOptions(12, skip_batches=2), **still)
    assert [line["loss"] for line in metrics(run)][12:14] == pytest.approx(whole[14:], abs=1e-6)


def test_the_optimiser_takes_the_settings_of_now(tmp_path, runs, code_dataset):
    folder, changes = runs
    changes = {**CONSTANT, **changes, "training__num_tokens": 16 * STEP}
    found = []
    for name, more in (
        ("same", {}),
        ("betas", {"training__adam_beta2": 0.9}),
        ("decay", {"training__weight_decay": 5}),
    ):
        run = shutil.copytree(folder / "constant-16", tmp_path / name)
        if name == "betas":
            # As of a run that diverged before its next checkpoint: its figures are set aside all the same.
            shutil.rmtree(run / "model")
            shutil.rmtree(run / "checkpoints/step-00000016")
        run_job(code_dataset, run, options=StartOptions(12), **{**changes, **more})
        assert figures(run / "set-aside" / "1") == figures(folder / "constant-16")
        found.append(figures(run)[12:])
    assert found[0] == figures(folder / "constant-16")[12:]
    assert found[0][0][1] == found[1][0][1] == found[2][0][1]
    assert len({each[-1][1] for each in found}) == 3


def test_it_ends_anywhere_and_the_same_command_goes_on(tmp_path, runs, code_dataset, monkeypatch):
    folder, changes = runs
    run = copied(folder / "constant-16", tmp_path)
    changes = {**CONSTANT, **changes, **LOWER, "training__num_tokens": 16 * STEP}

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(best, "forget_after", killed)
        run_job(code_dataset, run, options=StartOptions(12), **changes)
    facts, _ = run_job(code_dataset, run, options=StartOptions(12), **changes)
    assert (facts.status, facts.step, len(facts.history)) == ("finished", 16, 1)
    assert facts.history[0].set_aside == "set-aside/1"
    assert checkpoints.steps(run / "set-aside/1/checkpoints") == [16]
    assert not (run / "set-aside/2").exists()
    assert [line["step"] for line in metrics(run)] == list(range(1, 17))


def test_what_cannot_go_back_is_refused(tmp_path, runs, code_dataset):
    folder, changes = runs
    with pytest.raises(UserError, match="there is no run in"):
        run_job(code_dataset, tmp_path / "none", options=StartOptions(4))
    assert not (tmp_path / "none").exists()
    run = copied(folder / "wsd-8", tmp_path)
    with pytest.raises(UserError, match=r"differs from the one of 8 in .* from step 6 on"):
        run_job(code_dataset, run, options=StartOptions(8), **WSD, **changes, training__num_tokens=16 * STEP)
    (run / "checkpoints/step-00000006/generators-00000.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"--from-step 6: the checkpoint .* is damaged"):
        run_job(code_dataset, run, options=StartOptions(6), **WSD, **changes, training__num_tokens=8 * STEP)
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_the_schedule_keeps_a_warm_up_that_is_given():
    config = TrainingConfig(learning_rate=1.0, schedule="wsd", warmup_steps=4, decay_ratio=0.5)
    short, long = ([learning_rate(config, step, steps) for step in range(steps)] for steps in (20, 40))
    assert short[:11] == long[:11] == [0.25, 0.5, 0.75, *[1.0] * 8]
    assert short[11] < long[11] == 1.0
