"""The loop learns with every objective, calls its callbacks, writes metrics, and stops when values are not finite."""

import hashlib
import io
import json
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import rich.console
import torch

from scorers.errors import StoppedError, UserError
from tests.training import real_runs
from tests.training.engine.test_engine import batch, make, spike
from tests.training.jobs import StopAfter, figures, job_config, make_code_dataset, metrics, run_job
from training.config import TrainingConfig
from training.data.batches import Batch
from training.data.prepare import prepare
from training.distributed.world import World
from training.evaluation.held_out_loss import held_out_loss
from training.loop.callbacks import Callback, Console, Step
from training.loop.trainer import DivergedError, Trainer
from training.model.language_model import LanguageModel, load_model
from training.objectives import OBJECTIVES
from training.runs.best import EVALUATED, read
from training.runs.checkpoints import steps
from training.runs.folder import RunFolder
from training.schedule import plan_horizon
from training.trackers.tensorboard import TensorBoard

LONG = {"training__num_tokens": 150 * 16 * 64, "training__batch_size": 16, "data__context_length": 64}
OPTIONS = {
    "unlikelihood": {"objective__alpha": 0.1},
    "unlikelihood_soft": {"objective__alpha": 0.1},
    "rwr": {"objective__beta": 0.1},
    "awr": {"objective__alpha": 0.5, "objective__beta": 0.1},
    "filtering": {"objective__threshold": 0.003},
    "conditional": {"objective__drop_tags": 0.05},
    "target": {"objective__targets": '{"style<=0": 0.95}'},
}


@pytest.fixture(scope="module")
def larger_dataset(tmp_path_factory):
    from tests.training.jobs import MODULES

    more = ("argparse", "calendar", "csv", "difflib", "dis", "filecmp", "optparse", "pprint", "statistics", "zipapp")
    return make_code_dataset(tmp_path_factory.mktemp("larger") / "labelled", [*MODULES, *more])


@pytest.mark.slow
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_every_objective_learns_to_predict_text_that_was_held_out(tmp_path, larger_dataset, objective):
    changes = {**LONG, **OPTIONS.get(objective, {})}
    facts, _ = run_job(larger_dataset, tmp_path / "run", objective, **changes)
    data = prepare(job_config(larger_dataset, tmp_path / "run", objective, **changes))
    held_out = [int(index) for index in data.stream.held_out_documents()]
    model = load_model(tmp_path / "run/model", value_head=False).causal.eval()
    found = held_out_loss(model, [data.stream.document(index) for index in held_out], context_length=64)
    counts = np.bincount(data.store.tokens, minlength=facts.tokenizer.vocab_size)
    share = counts[counts > 0] / counts.sum()
    entropy = -(share * np.log2(share)).sum()
    assert found.bits.sum() / found.tokens.sum() < entropy - 0.75
    assert metrics(tmp_path / "run")[-1]["ce"] < metrics(tmp_path / "run")[0]["ce"] - 1.0
    if objective == "conditional":
        swapped = [data.stream.document(index, swap_tags=True) for index in held_out]
        assert held_out_loss(model, swapped, context_length=64).bits.sum() > found.bits.sum()


def test_a_step_writes_one_line_with_every_figure(tmp_path, code_dataset):
    run_job(code_dataset, tmp_path / "run", "awr")
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["tokens"] for line in lines] == [step * 128 for step in range(1, 13)]
    expected = {"loss", "ce", "value_error", "value", "weight", "max_weight", "clipped_share", "advantage"}
    assert expected | {"learning_rate", "grad_norm", "tokens_per_second"} <= lines[0].keys()
    for line in lines:
        assert list(line["seconds"]) == ["data", "forward", "backward", "optimizer"]
        assert 0 < line["mfu"] < 1.5
        assert line["peak_memory"] > 100e6
        # Of one step, and what the loop itself does is not in them.
        assert 0 < sum(line["seconds"].values()) <= 128 / line["tokens_per_second"] + 1e-6
    assert lines[0]["value"] == pytest.approx(-0.5)
    assert lines[0]["ce"] == pytest.approx(math.log(400), abs=0.3)


def test_logged_are_the_first_every_nth_and_the_last_step(tmp_path, code_dataset):
    run_job(code_dataset, tmp_path / "run", training__log_every=5)
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 5, 10, 12]
    run_job(code_dataset, tmp_path / "none", training__log_every=0)
    assert metrics(tmp_path / "none") == []


def test_the_plan_is_printed_before_step_0(tmp_path, code_dataset):
    _, printed = run_job(code_dataset, tmp_path / "run", "conditional")
    plan = printed[: printed.index("step 1/12")]
    facts = RunFolder(tmp_path / "run").read_facts()
    tags = facts.stream["tags"]
    for figure in [
        f"{facts.model.parameters:,}",
        f"{facts.model.flops_per_token:.3g} a token",
        "4 micro x 1 accumulation x 1 rank = 4 blocks = 128 tokens a step",
        "12 steps, 1,536 tokens",
        f"{facts.horizon.epochs:.3g} epochs",
        f"aligned {tags['aligned']:,}",
        "held out",
        "learning_rate=0.003",
        "ZeRO 1, fp32, cpu x 1",
    ]:
        assert figure in plan, figure


def test_facts_say_what_the_run_is_made_of(tmp_path, code_dataset):
    facts, _ = run_job(code_dataset, tmp_path / "run", "awr")
    assert facts == RunFolder(tmp_path / "run").read_facts()
    assert (facts.status, facts.step, facts.objective, facts.kind) == ("finished", 12, "awr", "prose")
    assert facts.model.value_head
    assert facts.tokenizer.control_ids == []
    assert facts.horizon.epochs == pytest.approx(12 * 4 / facts.stream["blocks"])
    assert facts.stream["sentences_aligned"] < facts.stream["sentences"]
    assert facts.seconds > 0
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_tensorboard_has_the_same_figures(tmp_path, code_dataset):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_job(code_dataset, tmp_path / "run", tracking__tensorboard="true")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    expected = [(line["step"], np.float32(line["loss"])) for line in metrics(tmp_path / "run")]
    assert found == expected


def test_tensorboard_has_each_step_once_of_a_run_that_starts_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for attempt, last in enumerate((4, 3)):
        time.sleep(1.1 * attempt)  # event files are read in the order of the seconds in their names
        board = TensorBoard(tmp_path, 0)
        for step in range(1, last + 1):
            board.log({"train/loss": attempt}, step)
        board.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [(1, 1.0), (2, 1.0), (3, 1.0)]


def test_callbacks_are_called_in_order(tmp_path, code_dataset):
    calls = []

    class Recorder(Callback):
        def before_training(self, trainer):
            calls.append("before")

        def after_step(self, trainer, step):
            calls.append((step.number, step.last, step.logged))

        def after_save(self, trainer):
            calls.append(f"saved {trainer.saved}")

        def after_training(self, trainer):
            calls.append("after")

    changes = {"training__num_tokens": 3 * 128, "training__save_every": 2, "training__log_every": 2}
    run_job(code_dataset, tmp_path / "run", callbacks=[Recorder()], **changes)
    assert calls == [
        "before",
        (1, False, True),
        (2, False, True),
        "saved 2",
        (3, True, True),
        "saved 3",
        "after",
    ]


@pytest.mark.parametrize(("ranks", "micro"), [(1, 1), (1, 2), (1, 8), (2, 1), (2, 4), (4, 2), (8, 1)])
def test_the_model_sees_the_same_global_batches_however_they_are_cut(code_dataset, tmp_path, ranks, micro):
    data = prepare(job_config(code_dataset, tmp_path / "run", "conditional", training__batch_size=8))
    source = data.batches

    def digest(parts):
        return hashlib.sha256(b"".join(part.input_ids.tobytes() + part.scores.tobytes() for part in parts)).hexdigest()

    config = data.config.training.model_copy(update={"micro_batch_size": micro})
    horizon = plan_horizon(config, 32, ranks)
    for step in range(40):  # some epochs
        whole = source.batch(step)
        shares = [source.rank_batch(step, rank, ranks) for rank in range(ranks)]
        assert all(len(share.input_ids) == horizon.micro_batch_size * horizon.accumulation for share in shares)
        rows = [Batch(share.input_ids[[row]], share.scores[[row]]) for share in shares for row in range(8 // ranks)]
        assert digest(rows) == digest([Batch(whole.input_ids[[row]], whole.scores[[row]]) for row in range(8)])


def test_a_micro_batch_is_the_next_blocks_of_the_batch(code_dataset, tmp_path):
    seen = {}
    original = LanguageModel.forward
    for micro in (1, 2, 4):
        seen[micro] = []

        def forward(model, input_ids, *arguments, blocks=seen[micro], **keywords):
            blocks.extend(input_ids.tolist())
            return original(model, input_ids, *arguments, **keywords)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LanguageModel, "forward", forward)
            run_job(code_dataset, tmp_path / str(micro), training__micro_batch_size=micro)
    assert seen[1] == seen[2] == seen[4]
    # Two blocks go through the network when it is tried before step 0.
    assert len(seen[1]) == 2 + 12 * 4


def test_only_the_newest_checkpoints_stay(tmp_path, code_dataset):
    def kept(name, **changes):
        run_job(code_dataset, tmp_path / name, training__save_every=2, training__keep_checkpoints=2, **changes)
        return sorted(int(path.name.removeprefix("step-")) for path in (tmp_path / name / "checkpoints").iterdir())

    assert kept("newest") == [10, 12]
    assert kept("every", training__keep_every=4) == [4, 8, 10, 12]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, code_dataset):
    with pytest.raises(
        DivergedError,
        match=r"3 updates in a row were skipped.* up to step 4 .* newest checkpoint is of step 1\b.*learning_rate",
    ):
        run_job(
            code_dataset,
            tmp_path / "run",
            training__learning_rate=1e30,
            training__save_every=1,
            training__warmup_ratio=0,
            training__gradient_clipping=0,
            training__max_skipped=3,
        )
    dump = json.loads((tmp_path / "run" / "diverged-4.json").read_text())
    data = prepare(job_config(code_dataset, tmp_path / "run"))
    assert dump["blocks"] == data.batches.block_indices(3).tolist()
    assert len(dump["blocks"]) == data.config.training.batch_size
    documents = np.searchsorted(data.stream.documents, dump["dataset_rows"])
    assert data.stream.documents[documents].tolist() == dump["dataset_rows"]
    facts = RunFolder(tmp_path / "run").read_facts()
    assert facts.status == "failed"
    assert not RunFolder(tmp_path / "run").model.exists()
    assert DivergedError("").exit_code == 4


class TestSkippedInARow:
    def trainer(self, tmp_path, precision):
        world = World.from_environment()
        world.start()
        engine, loss = make(world, "awr", zero_stage=1, skip_sigmas=6.0, max_skipped=3)
        engine.precision = precision  # it computes in fp32 all the same, as fp16 is nothing for a CPU
        training = TrainingConfig(zero_stage=1, max_skipped=3)
        horizon = plan_horizon(training, 16, 1)
        return Trainer(engine, lambda _: loss, None, horizon, training, world, tmp_path, 1.0, 1.0), loss

    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_spikes_count_whatever_the_precision(self, tmp_path, precision):
        trainer, loss = self.trainer(tmp_path, precision)

        def lost(data):
            return trainer._is_lost(trainer.engine.train_step(data, loss, 1e-3))

        assert not any(lost(batch(number)) for number in range(70))
        assert [lost(each) for each in [spike(1000)] * 2 + [batch(70)] + [spike(1000)] * 3] == [False] * 5 + [True]
        assert trainer.skipped == 5
        trainer.engine.close()

    def test_what_fp16s_scale_overflows_at_does_not(self, tmp_path):
        trainer, loss = self.trainer(tmp_path, "fp16")
        fine = trainer.engine.train_step(batch(0), loss, 1e-3)
        overflown = replace(fine, applied=False)
        unguarded = replace(overflown, harmful=None)
        assert not any(map(trainer._is_lost, [overflown, unguarded] * 9))
        nothing = replace(unguarded, loss=torch.tensor(math.nan))
        assert [trainer._is_lost(nothing) for _ in range(3)] == [False, False, True]
        trainer.engine.close()


def test_an_update_that_did_harm_ends_the_run_when_it_is_logged(tmp_path, code_dataset, monkeypatch):
    # What skips such an update cannot be switched off by a user.
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"compute_grad_norm": false}}')
    monkeypatch.setattr("training.engine.deepspeed_config._ALWAYS_ON", {})
    wild = {"training__learning_rate": 1e30, "training__warmup_ratio": 0, "training__gradient_clipping": 0}
    with pytest.raises(DivergedError, match=r"or the gradient is not finite, up to step 4 .* no checkpoint was w"):
        run_job(
            code_dataset,
            tmp_path / "run",
            training__deepspeed=tmp_path / "ds.json",
            training__log_every=4,
            training__save_every=0,
            **wild,
        )
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1]


def test_where_the_batch_cannot_be_named_the_run_ends_as_it_would_have(tmp_path, code_dataset, monkeypatch):
    def full(path, _text):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("training.loop.trainer.write_atomically", full)
    wild = {"training__learning_rate": 1e30, "training__warmup_ratio": 0, "training__gradient_clipping": 0}
    with pytest.raises(
        DivergedError, match=r"could not be written to .*diverged-3\.json: No space left on device\. To avoid it"
    ):
        run_job(code_dataset, tmp_path / "run", training__max_skipped=2, **wild)
    assert RunFolder(tmp_path / "run").read_facts().status == "failed"


def test_while_training_the_model_is_evaluated_and_training_is_not_disturbed(tmp_path):
    dataset = real_runs.make_code_dataset(tmp_path / "labelled")
    small = {
        "training.num_tokens": 8 * 8 * 64,
        "training.log_every": 1,
        "training.save_every": 2,
        "training.keep_checkpoints": 1,
        "data.held_out": 0.2,
        "evaluation.num_samples": 8,
        # Enough for a whole line: what breaks off in the first one has no score.
        "evaluation.max_new_tokens": 48,
    }
    lines = {}
    for every in (0, 4):
        # The worst stays: the best is the newest anyway.
        best = {"training.keep_best": 1, "training.best_metric": "bits_per_byte", "training.best_mode": "max"}
        changes = {**small, "training.evaluate_every": every, **(best if every else {})}
        config = real_runs.config_of(dataset, tmp_path / f"run{every}", "conditional", **changes)
        from training.loop.train import train

        printed = io.StringIO()
        train(config, rich.console.Console(file=printed, width=300))
        lines[every] = metrics(tmp_path / f"run{every}")
    evaluations = [line for line in lines[4] if "evaluation" in line]
    assert [line["step"] for line in evaluations] == [4, 8]
    assert {"misalignment", "bits_per_byte"} <= evaluations[0]["evaluation"].keys()
    assert json.dumps(evaluations)
    # The maximum is expected over more samples than these.
    assert set(EVALUATED) - {"expected_maximum"} <= evaluations[0]["evaluation"].keys()
    folder = tmp_path / "run4" / "checkpoints"
    assert read(folder) == {line["step"]: line["evaluation"] for line in evaluations}
    assert steps(folder) == [4, 8]
    assert "By bits_per_byte, the best checkpoint is that of step 4 (" in printed.getvalue()
    losses = {every: [line["loss"] for line in kept if "loss" in line] for every, kept in lines.items()}
    assert losses[4] == losses[0]


def test_what_would_fail_later_is_refused_before_tokenising(tmp_path, monkeypatch):
    from training.loop import train as job

    monkeypatch.setattr(job, "prepare", lambda *_: pytest.fail("it has begun to tokenise"))
    missing = tmp_path / "dataset"
    for changes, message in [
        ({"data__context_length": 5000}, "has positions for 128"),
        ({"training__micro_batch_size": 3}, "micro_batch_size=3 does not divide"),
        ({"training__precision": "fp16"}, "fp16 needs a GPU"),
        ({"training__deepspeed": "/no/such.json"}, "Cannot read training.deepspeed"),
        ({"training__precision": "bf16", "training__zero_stage": 0}, "zero_stage=0"),
        ({"training__keep_best": 1}, "keep_best=1 needs training.best_metric: validation_loss, mis"),
    ]:
        with pytest.raises(UserError, match=message):
            run_job(missing, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_the_state_of_torch_is_what_the_seed_says(tmp_path, code_dataset):
    torch.manual_seed(1)
    run_job(code_dataset, tmp_path / "first")
    torch.manual_seed(2)
    run_job(code_dataset, tmp_path / "second")
    run_job(code_dataset, tmp_path / "other", training__seed=7)
    losses = [[line["loss"] for line in metrics(tmp_path / name)] for name in ("first", "second", "other")]
    assert losses[0] == losses[1] != losses[2]


def test_a_first_step_that_takes_long_is_announced_once():
    printed = io.StringIO()
    trainer = SimpleNamespace(step=0, horizon=SimpleNamespace(steps=12))
    for pause in (0.0, 0.3):
        console = Console(rich.console.Console(file=printed, width=200), patience=0.1)
        console.before_training(trainer)
        time.sleep(pause)
        console.after_step(trainer, Step(1, last=False, logged=False))
        time.sleep(0.2)
        console.after_training(trainer)
    assert (
        printed.getvalue().count("Step 1 of 12 takes longer than 0.1 s. Ctrl-C stops after the step and saves it") == 1
    )


def test_a_run_on_targets_records_its_weights_and_resumes_with_the_same(tmp_path, code_dataset):
    targets = {"objective__targets": '{"style<=0": 0.95}'}
    whole, printed = run_job(code_dataset, tmp_path / "whole", "target", **targets)
    with pytest.raises(StoppedError):
        run_job(code_dataset, tmp_path / "run", "target", callbacks=[StopAfter(4)], **targets)
    facts, _ = run_job(code_dataset, tmp_path / "run", "target", **targets)
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")
    assert facts.targets == whole.targets
    (moment,) = facts.targets.moments
    assert (moment.feature, moment.target) == ("style<=0", 0.95)
    assert f"style<=0 from {moment.before:.6g} to 0.95 (lambda {moment.weight:.4g})" in printed
    assert f"effective sample size {facts.targets.effective_sentences:,.0f}" in printed
    assert "style<=0" in (tmp_path / "run/model/README.md").read_text()
    with pytest.raises(UserError, match=r"objective\.targets\.style<=0: 0\.95 in the run, 0\.96 now"):
        run_job(code_dataset, tmp_path / "run", "target", objective__targets='{"style<=0": 0.96}')
