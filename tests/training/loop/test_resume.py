"""A run that was stopped, killed or damaged resumes exactly or says why not; it never silently starts again."""

import errno
import json
import os
import shutil
import signal

import pytest

from scorers.errors import IncompleteError, StoppedError, UserError
from scorers.stopping import stoppable
from tests.training.jobs import StopAfter, figures, make_code_dataset, metrics, run_job
from training.config import TrainingConfig
from training.engine.deepspeed_config import own_settings
from training.loop.resume import check_folder
from training.loop.trainer import DivergedError, Trainer
from training.runs.checkpoints import checkpoint_path, newest, steps
from training.runs.folder import RunFolder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, code_dataset):
    output = tmp_path_factory.mktemp("resume") / "undisturbed"
    run_job(code_dataset, output, "awr", training__num_tokens=20 * 128)
    return output


def stop(code_dataset, output, step, number=signal.SIGTERM, **changes):
    callbacks = [StopAfter(step, number)]
    with pytest.raises(StoppedError, match=rf"asked to stop after step {step + 1} of 20"):
        run_job(code_dataset, output, "awr", callbacks=callbacks, training__num_tokens=20 * 128, **changes)


@pytest.mark.parametrize("step", [1, 2, 9, 18])
def test_stopped_at_any_step_it_goes_on_with_the_same_losses(tmp_path, code_dataset, undisturbed, step):
    output = tmp_path / "run"
    stop(code_dataset, output, step)
    run = RunFolder(output)
    assert (run.read_facts().status, run.read_facts().step) == ("stopped", step + 1)
    assert not run.model.exists()
    facts, printed = run_job(code_dataset, output, "awr", training__num_tokens=20 * 128)
    assert f"step {step + 1} of 20" in printed
    assert (facts.status, facts.step) == ("finished", 20)
    assert figures(output) == figures(undisturbed)
    assert (run.model / "model.safetensors").read_bytes() == (undisturbed / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_other_signals_stop_it_in_order_too(tmp_path, code_dataset, number):
    stop(code_dataset, tmp_path / "run", 3, number)
    assert newest(tmp_path / "run" / "checkpoints")[0].marker.step == 4


class StopTwice(StopAfter):
    def after_step(self, trainer, step):
        super().after_step(trainer, step)
        super().after_step(trainer, step)


def test_a_signal_that_comes_twice_at_once_is_one(tmp_path, code_dataset):
    with pytest.raises(StoppedError, match="asked to stop after step 5 of 20"):
        run_job(code_dataset, tmp_path / "run", "awr", callbacks=[StopTwice(4)], training__num_tokens=20 * 128)
    assert newest(tmp_path / "run" / "checkpoints")[0].marker.step == 5


def test_who_asks_again_later_does_not_wait_and_the_run_can_go_on(tmp_path, code_dataset, monkeypatch):
    monkeypatch.setattr("training.loop.trainer._ASKED_ONCE_S", 0.0)
    with pytest.raises(StoppedError), stoppable():
        run_job(code_dataset, tmp_path / "run", "awr", callbacks=[StopTwice(4)], training__num_tokens=20 * 128)
    facts = RunFolder(tmp_path / "run").read_facts()
    assert (facts.status, facts.step) == ("stopped", 0)
    assert run_job(code_dataset, tmp_path / "run", "awr", training__num_tokens=20 * 128)[0].step == 20


def test_stopped_twice_over_several_epochs(tmp_path, code_dataset):
    small = make_code_dataset(tmp_path / "small", ["bisect", "copy"])
    changes = {"training__num_tokens": 60 * 512, "training__batch_size": 16, "data__held_out": 0}
    run_job(small, tmp_path / "whole", "conditional", **changes)
    assert RunFolder(tmp_path / "whole").read_facts().horizon.epochs > 3
    for step in (21, 43):
        with pytest.raises(StoppedError):
            run_job(small, tmp_path / "parts", "conditional", callbacks=[StopAfter(step)], **changes)
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


def test_a_damaged_checkpoint_is_reported_and_an_older_one_taken(tmp_path, code_dataset, undisturbed):
    output = tmp_path / "run"
    stop(code_dataset, output, 14, training__save_every=5, training__keep_checkpoints=9)
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
    tmp_path, code_dataset, undisturbed
):
    output = tmp_path / "run"
    place = output / "checkpoints"
    stop(code_dataset, output, 14, training__save_every=5, training__keep_checkpoints=9)
    for step in (10, 15):
        (checkpoint_path(place, step) / "generators-00000.pt").write_bytes(b"")
    stop(code_dataset, output, 7, training__save_every=0, training__keep_checkpoints=2)
    assert steps(place) == [5, 8]
    assert newest(place)[0].marker.step == 8
    aside = ["damaged-step-00000010", "damaged-step-00000015"]
    assert sorted(path.name for path in place.glob("damaged-*")) == aside
    run_job(code_dataset, output, "awr", training__num_tokens=20 * 128, training__save_every=5)
    assert steps(place) == [15, 20]
    assert newest(place)[1] == []
    assert sorted(path.name for path in place.glob("damaged-*")) == aside
    assert figures(output) == figures(undisturbed)


def test_it_never_starts_again_where_its_checkpoints_are_gone(tmp_path, code_dataset):
    output = tmp_path / "run"
    stop(code_dataset, output, 3)
    shutil.rmtree(output / "checkpoints")
    with pytest.raises(UserError, match=r"reached step 4, but there is no checkpoint"):
        run_job(code_dataset, output, "awr", training__num_tokens=20 * 128)


def test_it_never_starts_again_where_all_are_damaged(tmp_path, code_dataset):
    output = tmp_path / "run"
    stop(code_dataset, output, 3)
    (output / "checkpoints/step-00000004/COMMITTED").unlink()
    with pytest.raises(UserError, match=r"No checkpoint .* is intact"):
        run_job(code_dataset, output, "awr", training__num_tokens=20 * 128)


def test_a_run_that_died_before_its_first_checkpoint_says_that_it_starts_again(tmp_path, code_dataset, monkeypatch):
    def die(trainer, _):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_loop", die)
    with pytest.raises(KeyboardInterrupt):
        run_job(code_dataset, tmp_path / "run")
    monkeypatch.undo()
    facts, printed = run_job(code_dataset, tmp_path / "run")
    assert "ended before its first checkpoint: the run starts again at step 0" in printed
    assert facts.status == "finished"


WILD = {"training__warmup_ratio": 0, "training__gradient_clipping": 0, "training__max_skipped": 2}


def test_a_run_that_diverged_before_its_first_checkpoint_may_start_again(tmp_path, code_dataset):
    wild = {**WILD, "training__learning_rate": 1e30}
    for attempt in range(2):
        with pytest.raises(DivergedError, match="no checkpoint was written"):
            run_job(code_dataset, tmp_path / "run", **wild)
        facts = RunFolder(tmp_path / "run").read_facts()
        assert (facts.status, facts.step, facts.saved) == ("failed", 3, 0), attempt


def test_a_run_that_diverged_after_a_checkpoint_never_starts_again_without_it(tmp_path, code_dataset):
    wild = {**WILD, "training__learning_rate": 1e30, "training__save_every": 1}
    with pytest.raises(DivergedError, match=r"newest checkpoint is of step 1\b"):
        run_job(code_dataset, tmp_path / "run", **wild)
    shutil.rmtree(tmp_path / "run/checkpoints")
    with pytest.raises(UserError, match=r"reached step 1, but there is no checkpoint"):
        run_job(code_dataset, tmp_path / "run", **wild)


def test_a_run_of_which_only_its_step_is_known_never_starts_again_without_a_checkpoint(tmp_path, code_dataset):
    stop(code_dataset, tmp_path / "run", 3)
    without(tmp_path / "run", "saved")
    shutil.rmtree(tmp_path / "run/checkpoints")
    with pytest.raises(UserError, match=r"reached step 4, but there is no checkpoint"):
        run_job(code_dataset, tmp_path / "run", "awr", training__num_tokens=20 * 128)


@pytest.mark.parametrize("left", [".config.yaml.x1y2", ".run.json.x1y2"])
def test_what_a_process_left_that_was_killed_while_it_wrote_is_no_hindrance(tmp_path, left):
    (tmp_path / left).touch()
    assert not check_folder(RunFolder(tmp_path))


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, IncompleteError), (errno.EDQUOT, IncompleteError), (errno.EACCES, UserError)],
)
def test_a_disk_that_is_still_full_may_be_tried_again(tmp_path, code_dataset, monkeypatch, number, error):
    stop(code_dataset, tmp_path / "run", 3)

    def refused(folder, config):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(RunFolder, "write_config", refused)
    with pytest.raises(error, match=rf"Cannot write to --output .*: {os.strerror(number)}\."):
        run_job(code_dataset, tmp_path / "run", "awr", training__num_tokens=20 * 128)


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


def deepspeed_file(path, **zero):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"zero_optimization": zero, "train_micro_batch_size_per_gpu": "auto"}))
    return {"training__deepspeed": path}


def without(output, *names):
    """Remove fields from the facts, as a version that did not record them would write them."""
    facts = json.loads((output / "run.json").read_text())
    for name in names:
        del facts[name]
    (output / "run.json").write_text(json.dumps(facts))


def test_what_the_deepspeed_file_says_must_not_change_and_where_it_lies_may(tmp_path, code_dataset):
    output = tmp_path / "run"
    stop(code_dataset, output, 3, **deepspeed_file(tmp_path / "ds.json", overlap_comm=False))
    changed = deepspeed_file(tmp_path / "ds.json", overlap_comm=False, round_robin_gradients=True)
    with pytest.raises(UserError, match=r"round_robin_gradients in the file of training\.deepspeed: None .* True now"):
        run_job(code_dataset, output, "awr", training__num_tokens=20 * 128, **changed)
    with pytest.raises(UserError, match=r"overlap_comm in the file of training\.deepspeed: False .* None now"):
        run_job(code_dataset, output, "awr", training__num_tokens=20 * 128)
    moved = deepspeed_file(tmp_path / "elsewhere" / "ds.json", overlap_comm=False)
    (tmp_path / "ds.json").unlink()
    assert run_job(code_dataset, output, "awr", training__num_tokens=20 * 128, **moved)[0].status == "finished"


def test_what_is_measured_is_no_part_of_the_deepspeed_settings(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(
        json.dumps(
            {
                "gradient_accumulation_steps": 4,
                "wandb": {"enabled": True, "team": "ours"},
                "flops_profiler": {"enabled": True},
                "zero_optimization": {"stage": 1, "allgather_partitions": False, "overlap_comm": "auto"},
            }
        )
    )
    assert own_settings(TrainingConfig(deepspeed=str(path))) == {"zero_optimization.allgather_partitions": False}
    assert own_settings(TrainingConfig()) == {}


def test_a_run_that_goes_on_keeps_its_precision(tmp_path, code_dataset, monkeypatch):
    output = tmp_path / "run"
    stop(code_dataset, output, 3)
    monkeypatch.setattr(
        "training.planning.resolved_run.choose_precision",
        lambda config, _: "bf16" if config.precision == "auto" else config.precision,
    )
    with pytest.raises(UserError, match=r"fp32 in the run, bf16 now.*--set training\.precision=fp32"):
        run_job(code_dataset, output, "awr", training__num_tokens=20 * 128)
    settings = {"training__num_tokens": 20 * 128, "training__precision": "fp32"}
    assert run_job(code_dataset, output, "awr", **settings)[0].status == "finished"


def test_a_run_that_has_not_written_down_precision_or_deepspeed_goes_on(tmp_path, code_dataset):
    output, here = tmp_path / "run", deepspeed_file(tmp_path / "ds.json", overlap_comm=False)
    stop(code_dataset, output, 3, **here)
    without(output, "precision", "deepspeed")
    with pytest.raises(UserError, match=r"training\.deepspeed: .*ds\.json' in the run, None now"):
        run_job(code_dataset, output, "awr", training__num_tokens=20 * 128)
    facts, _ = run_job(code_dataset, output, "awr", training__num_tokens=20 * 128, **here)
    assert (facts.status, facts.precision) == ("finished", "fp32")
    assert facts.deepspeed == {"zero_optimization.overlap_comm": False}


def test_a_column_that_the_run_has_no_use_for_may_come_and_one_that_it_uses_may_not_change(
    tmp_path, code_dataset, undisturbed
):
    output = tmp_path / "run"
    stop(code_dataset, output, 3)
    scored = make_code_dataset(tmp_path / "labelled", others={"length": len})
    manifest = (scored / "manifest.json").read_text()
    (scored / "manifest.json").write_text(manifest.replace('"made-up-', '"other-'))
    assert (scored / "manifest.json").read_text() != manifest
    with pytest.raises(UserError, match="the dataset's texts, sentences or scores"):
        run_job(scored, output, "awr", training__num_tokens=20 * 128)
    (scored / "manifest.json").write_text(manifest)
    assert run_job(scored, output, "awr", training__num_tokens=20 * 128)[0].status == "finished"
    assert figures(output) == figures(undisturbed)


def test_what_changes_no_number_may_change(tmp_path, code_dataset, undisturbed):
    output = tmp_path / "run"
    stop(code_dataset, output, 3)
    run_job(code_dataset, output, "awr", training__num_tokens=20 * 128, training__log_every=8, training__save_every=3)
    assert [step for step, *_ in figures(output)] == [1, 2, 3, 4, 8, 16, 20]
    assert figures(output)[-1] == figures(undisturbed)[-1]
    assert RunFolder(output).read_config().training.log_every == 8


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_keeps_the_earlier(tmp_path, code_dataset, monkeypatch):
    output = tmp_path / "run"
    from training.engine.engine import Engine

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
