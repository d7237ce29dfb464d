"""A run that was stopped, killed or damaged goes on exactly, or says why not; never silently from the start."""

import os
import shutil
import signal

import pytest

from scorers.errors import IncompleteError, StoppedError, UserError
from tests.training.jobs import figures, make_code_dataset, metrics, run_job
from training.run.checkpoints import checkpoint_path, newest, steps
from training.run.folder import RunFolder
from training.run.hooks import Hook
from training.run.job import TrainingJob
from training.run.stopping import stoppable
from training.run.trainer import Trainer


class StopAfter(Hook):
    """Sends this process a signal after some step."""

    def __init__(self, step, number=signal.SIGTERM):
        self.step = step
        self.number = number

    def after_step(self, trainer, step):
        if step.number == self.step:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def with_hook(monkeypatch):
    original = TrainingJob._hooks

    def use(hook):
        monkeypatch.setattr(TrainingJob, "_hooks", lambda job, step: [hook, *original(job, step)])

    yield use
    monkeypatch.undo()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, code_dataset):
    output = tmp_path_factory.mktemp("resume") / "undisturbed"
    run_job(code_dataset, output, "awr", training__num_tokens=20 * 128)
    return output


def stop(code_dataset, output, with_hook, step, number=signal.SIGTERM, **changes):
    with_hook(StopAfter(step, number))
    with pytest.raises(StoppedError, match=rf"asked to stop after step {step + 1} of 20"):
        run_job(code_dataset, output, "awr", training__num_tokens=20 * 128, **changes)
    with_hook(Hook())


@pytest.mark.parametrize("step", [1, 2, 9, 18])
def test_stopped_at_any_step_it_goes_on_with_the_same_losses(tmp_path, code_dataset, undisturbed, with_hook, step):
    output = tmp_path / "run"
    stop(code_dataset, output, with_hook, step)
    run = RunFolder(output)
    assert (run.read_facts().status, run.read_facts().step) == ("stopped", step + 1)
    assert not run.model.exists()
    facts, printed = run_job(code_dataset, output, "awr", training__num_tokens=20 * 128)
    assert f"step {step + 1} of 20" in printed
    assert (facts.status, facts.step) == ("finished", 20)
    assert figures(output) == figures(undisturbed)
    assert (run.model / "model.safetensors").read_bytes() == (undisturbed / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_other_signals_stop_it_in_order_too(tmp_path, code_dataset, with_hook, number):
    stop(code_dataset, tmp_path / "run", with_hook, 3, number)
    assert newest(tmp_path / "run" / "checkpoints")[0].marker.step == 4


class StopTwice(StopAfter):
    def after_step(self, trainer, step):
        super().after_step(trainer, step)
        super().after_step(trainer, step)


def test_a_signal_that_comes_twice_at_once_is_one(tmp_path, code_dataset, with_hook):
    with_hook(StopTwice(4))
    with pytest.raises(StoppedError, match="asked to stop after step 5 of 20"):
        run_job(code_dataset, tmp_path / "run", "awr", training__num_tokens=20 * 128)
    assert newest(tmp_path / "run" / "checkpoints")[0].marker.step == 5


def test_who_asks_again_later_does_not_wait_and_the_run_can_go_on(tmp_path, code_dataset, with_hook, monkeypatch):
    monkeypatch.setattr("training.run.trainer._ASKED_ONCE_S", -1.0)
    with_hook(StopTwice(4))
    with pytest.raises(StoppedError), stoppable():
        run_job(code_dataset, tmp_path / "run", "awr", training__num_tokens=20 * 128)
    facts = RunFolder(tmp_path / "run").read_facts()
    assert (facts.status, facts.step) == ("stopped", 0)
    with_hook(Hook())
    assert run_job(code_dataset, tmp_path / "run", "awr", training__num_tokens=20 * 128)[0].step == 20


def test_stopped_twice_over_several_epochs(tmp_path, code_dataset, with_hook):
    small = make_code_dataset(tmp_path / "small", ["bisect", "copy"])
    changes = {"training__num_tokens": 60 * 512, "training__batch_size": 16, "data__held_out": 0}
    run_job(small, tmp_path / "whole", "conditional", **changes)
    assert RunFolder(tmp_path / "whole").read_facts().horizon.epochs > 3
    for step in (21, 43):
        with_hook(StopAfter(step))
        with pytest.raises(StoppedError):
            run_job(small, tmp_path / "parts", "conditional", **changes)
    with_hook(Hook())
    run_job(small, tmp_path / "parts", "conditional", **changes)
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")


def test_killed_between_checkpoints_it_repeats_the_steps_since(tmp_path, code_dataset, undisturbed, monkeypatch):
    output = tmp_path / "run"

    class Killed(BaseException):
        pass

    original = Trainer._values

    def die(trainer, *arguments):
        if trainer.step == 13:
            raise Killed
        return original(trainer, *arguments)

    monkeypatch.setattr(Trainer, "_values", die)
    with pytest.raises(Killed):
        run_job(code_dataset, output, "awr", training__num_tokens=20 * 128, training__save_every=5)
    monkeypatch.undo()
    assert RunFolder(output).read_facts().status == "running"
    _, printed = run_job(code_dataset, output, "awr", training__num_tokens=20 * 128, training__save_every=5)
    assert "step 10 of 20" in printed
    assert figures(output) == figures(undisturbed)


def test_a_damaged_checkpoint_is_reported_and_an_older_one_taken(tmp_path, code_dataset, undisturbed, with_hook):
    output = tmp_path / "run"
    stop(code_dataset, output, with_hook, 14, training__save_every=5, training__keep_checkpoints=9)
    path = next((output / "checkpoints/step-00000015/deepspeed").glob("*optim_states.pt"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    _, printed = run_job(code_dataset, output, "awr", training__num_tokens=20 * 128)
    assert "Skipped the damaged checkpoint" in printed
    assert "the content of deepspeed/zero_pp_rank_0_mp_rank_00_optim_states.pt has changed" in printed
    assert "step-00000010: step 10 of 20" in printed
    assert figures(output) == figures(undisturbed)


def test_damaged_checkpoints_beyond_do_not_take_the_place_of_those_that_it_makes_now(
    tmp_path, code_dataset, undisturbed, with_hook
):
    output = tmp_path / "run"
    place = output / "checkpoints"
    stop(code_dataset, output, with_hook, 14, training__save_every=5, training__keep_checkpoints=9)
    for step in (10, 15):
        (checkpoint_path(place, step) / "generators-00000.pt").write_bytes(b"")
    stop(code_dataset, output, with_hook, 7, training__save_every=0, training__keep_checkpoints=2)
    assert steps(place) == [5, 8]
    assert newest(place)[0].marker.step == 8
    aside = ["damaged-step-00000010", "damaged-step-00000015"]
    assert sorted(path.name for path in place.glob("damaged-*")) == aside
    run_job(code_dataset, output, "awr", training__num_tokens=20 * 128, training__save_every=5)
    assert steps(place) == [15, 20]
    assert newest(place)[1] == []
    assert sorted(path.name for path in place.glob("damaged-*")) == aside
    assert figures(output) == figures(undisturbed)


def test_it_never_starts_again_where_its_checkpoints_are_gone(tmp_path, code_dataset, with_hook):
    output = tmp_path / "run"
    stop(code_dataset, output, with_hook, 3)
    shutil.rmtree(output / "checkpoints")
    with pytest.raises(UserError, match=r"has come to step 4, but there is no checkpoint"):
        run_job(code_dataset, output, "awr", training__num_tokens=20 * 128)


def test_it_never_starts_again_where_all_are_damaged(tmp_path, code_dataset, with_hook):
    output = tmp_path / "run"
    stop(code_dataset, output, with_hook, 3)
    (output / "checkpoints/step-00000004/COMMITTED").unlink()
    with pytest.raises(UserError, match=r"No checkpoint .* is whole"):
        run_job(code_dataset, output, "awr", training__num_tokens=20 * 128)


def test_a_run_that_died_before_its_first_checkpoint_says_that_it_starts_again(tmp_path, code_dataset, monkeypatch):
    def die(trainer, _):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_loop", die)
    with pytest.raises(KeyboardInterrupt):
        run_job(code_dataset, tmp_path / "run")
    monkeypatch.undo()
    facts, printed = run_job(code_dataset, tmp_path / "run")
    assert "ended before its first checkpoint: it starts again at step 0" in printed
    assert facts.status == "finished"


def test_a_finished_run_is_left_alone(code_dataset, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()}
    facts, printed = run_job(code_dataset, undisturbed, "awr", training__num_tokens=20 * 128)
    assert facts.status == "finished"
    assert "is finished (20 steps)" in printed
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()} == before


def test_a_lost_model_is_exported_again_from_the_last_checkpoint(tmp_path, code_dataset):
    run_job(code_dataset, tmp_path / "run")
    weights = (tmp_path / "run/model/model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run/model")
    run_job(code_dataset, tmp_path / "run")
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == weights


def test_another_configuration_is_refused_with_the_differences(code_dataset, undisturbed):
    with pytest.raises(UserError) as refused:
        run_job(code_dataset, undisturbed, "awr", training__learning_rate=1e-4, training__num_tokens=40 * 128)
    assert "training.learning_rate: 0.003 in the run, 0.0001 now" in str(refused.value)
    assert "training.num_tokens: 2560 in the run, 5120 now" in str(refused.value)
    assert "another --output" in str(refused.value)


def test_another_dataset_is_refused_and_a_moved_one_is_not(tmp_path, code_dataset, undisturbed):
    other = make_code_dataset(tmp_path / "other", ["textwrap", "string", "queue", "cmd"])
    with pytest.raises(UserError, match="the dataset's texts, sentences or scores"):
        run_job(other, undisturbed, "awr", training__num_tokens=20 * 128)
    moved = shutil.copytree(code_dataset, tmp_path / "moved")
    assert run_job(moved, undisturbed, "awr", training__num_tokens=20 * 128)[0].status == "finished"


def test_a_column_that_the_run_has_no_use_for_may_come_and_one_that_it_uses_may_not_change(
    tmp_path, code_dataset, undisturbed, with_hook
):
    output = tmp_path / "run"
    stop(code_dataset, output, with_hook, 3)
    scored = make_code_dataset(tmp_path / "labelled", others={"length": len})
    manifest = (scored / "manifest.json").read_text()
    (scored / "manifest.json").write_text(manifest.replace('"made-up-', '"other-'))
    assert (scored / "manifest.json").read_text() != manifest
    with pytest.raises(UserError, match="the dataset's texts, sentences or scores"):
        run_job(scored, output, "awr", training__num_tokens=20 * 128)
    (scored / "manifest.json").write_text(manifest)
    assert run_job(scored, output, "awr", training__num_tokens=20 * 128)[0].status == "finished"
    assert figures(output) == figures(undisturbed)


def test_what_changes_no_number_may_change(tmp_path, code_dataset, undisturbed, with_hook):
    output = tmp_path / "run"
    stop(code_dataset, output, with_hook, 3)
    run_job(code_dataset, output, "awr", training__num_tokens=20 * 128, training__log_every=8, training__save_every=3)
    assert [step for step, *_ in figures(output)] == [1, 2, 3, 4, 8, 16, 20]
    assert figures(output)[-1] == figures(undisturbed)[-1]
    assert RunFolder(output).read_config().training.log_every == 8


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_keeps_the_earlier(tmp_path, code_dataset, monkeypatch):
    output = tmp_path / "run"
    from training.run.engine import Engine

    original = Engine.save

    def full(engine, folder, *write):
        if "00000008" in folder.name:
            raise OSError(28, "No space left on device")
        return original(engine, folder, *write)

    monkeypatch.setattr(Engine, "save", full)
    with pytest.raises(IncompleteError, match=r"could not be written .*No space left on device.*free there"):
        run_job(code_dataset, output, training__save_every=4)
    monkeypatch.undo()
    assert newest(output / "checkpoints")[0].marker.step == 4
    assert run_job(code_dataset, output, training__save_every=4)[0].status == "finished"


def test_a_folder_with_something_else_is_refused_before_any_work(tmp_path, code_dataset):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").touch()
    with pytest.raises(UserError, match="holds something that is not a training run"):
        run_job(code_dataset, tmp_path / "run")
    with pytest.raises(UserError, match="is a file"):
        run_job(code_dataset, tmp_path / "run" / "precious")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["precious"]


def test_metrics_have_each_step_once(undisturbed):
    assert [line["step"] for line in metrics(undisturbed)] == list(range(1, 21))
