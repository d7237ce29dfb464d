"""`phf train` from a configuration to an exported model: prepare, print the plan, train, export."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorers.amounts import format_count, format_duration
from scorers.errors import EXIT_STOPPED, IncompleteError, UserError
from scorers.shell import phf
from scorers.stopping import is_stop, leave
from training.config import ResolvedConfig, TrainingConfig
from training.data.prepare import PreparedData, prepare
from training.data.skipping import skip_batches
from training.data.tokenizers import foreign_control_ids
from training.disk import writing
from training.distributed.failures import failures_named
from training.distributed.world import World
from training.engine.deepspeed_config import warn_rounded_gradients
from training.engine.engine import Companion, Engine, seed_generators
from training.engine.timing import peak_flops
from training.evaluation.evaluate import evaluate_model
from training.evaluation.prepare import EvaluationSetup, check_guidance, prepare_evaluation
from training.evaluation.validation import Validation, choose_validation
from training.export.card import model_card
from training.export.model import export_model
from training.loop.branch import origin_checkpoint
from training.loop.build_facts import build_run_facts
from training.loop.callbacks import Callback, Checkpointing, Console, Evaluation, Tracking
from training.loop.continuation import (
    StartOptions,
    choose_resume_point,
    has_work_left,
    initial_steps,
    start,
    with_warmup,
)
from training.loop.prometheus import PrometheusMetrics
from training.loop.resume import check_folder
from training.loop.run_network import build_network, check_network
from training.loop.trainer import DivergedError, Trainer
from training.loop.validation_callback import Validating
from training.model.build_network import check_context
from training.model.language_model import LanguageModel
from training.planning.cost_warnings import cost_warning, describe_duration, no_held_out, schedule_warning
from training.planning.estimate import Machine
from training.planning.forecast import expected_seconds, fitted
from training.planning.machines import this_machine
from training.planning.plan import print_plan
from training.planning.resolved_run import ResolvedRun, resolve_run
from training.progress import StageProgress
from training.runs import checkpoints
from training.runs.best import LOSS, VALIDATION_LOSS, best_steps, check_best, read
from training.runs.facts import RunFacts
from training.runs.folder import RunFolder
from training.runs.lock import sole_launch
from training.runs.report import EvaluationReport
from training.schedule import Horizon, plan_horizon
from training.trackers.open import check_trackers, open_trackers
from training.trackers.tracker import Tracker, keep_lines


def train(
    config: ResolvedConfig, console: Any, options: StartOptions | None = None, callbacks: Sequence[Callback] = ()
) -> RunFacts:
    """Train or resume the run in `config.output` and export its model. Called on every rank.

    Args:
        config: from `training.settings.resolve_config`.
        console: the `rich.console.Console` that rank 0 prints on.
        options: how the run starts or continues; None to resume it unchanged.
        callbacks: called before the callbacks that every run has.

    Returns:
        The facts of the finished run.

    Raises:
        UserError: the settings, the data or the output folder are wrong.
        StoppedError: a signal asked the run to stop; it is saved and resumable.
        IncompleteError: the loss diverged, the disk is full, memory ran out, or another rank is gone.
    """
    world, folder, options = World.from_environment(), RunFolder(Path(config.output)), options or StartOptions()
    served = ExitStack()
    metrics: list[Callback] = []

    def prepare_served() -> tuple[PreparedData, ResolvedRun]:
        if world.is_main and config.tracking.metrics_port is not None:
            metrics.append(served.enter_context(PrometheusMetrics(config.tracking, folder)))
        return _prepare(config, world, options)

    with served:
        data, run = world.first(prepare_served)
        with failures_named():
            world.start()
            lock, warn = ExitStack(), partial(_print_warning, console)
            try:
                run = run.with_micro_batch(_smallest(run.horizon.micro_batch_size, world))
                unfinished = partial(has_work_left, folder, run.horizon, options)
                world.on_main(lambda: lock.enter_context(sole_launch(folder, warn)) if unfinished() else None)
                job = _build(data, run, world, folder, console, options)
                if world.on_main(lambda: _is_finished(folder)):
                    if world.is_main:
                        console.print(
                            f"{folder.path} is finished ({format_count(job.facts.step, 'step')}); "
                            f"its model is in {folder.model}.",
                            markup=False,
                        )
                    return job.facts
                return job.run([*callbacks, *metrics])
            finally:
                lock.close()
                world.stop()


def _is_finished(folder: RunFolder) -> bool:
    return folder.facts.is_file() and folder.read_facts().status == "finished" and folder.model.is_dir()


def _print_warning(console: Any, line: str) -> None:
    console.print(line, style="bold yellow", markup=False, soft_wrap=True)


@dataclass
class TrainingJob:
    """A prepared run: its data, model and facts.

    Attributes:
        resolved: the settings and what follows from them.
        facts: the content of `run.json`.
        resumed: whether the folder already held the run.
        machine: the machine of this rank.
        validation: the held-out text that it is validated on, if any.
        options: how the run starts or continues.
    """

    world: World
    folder: RunFolder
    resolved: ResolvedRun
    data: PreparedData
    model: LanguageModel
    facts: RunFacts
    console: Any
    resumed: bool
    machine: Machine
    validation: Validation | None
    options: StartOptions

    def run(self, callbacks: Sequence[Callback] = ()) -> RunFacts:
        """Train to the horizon from the newest checkpoint, or else from step 0, and export the model."""
        world, config, horizon = self.world, self.resolved.config, self.resolved.horizon
        checkpoint = world.on_main(self._find_checkpoint)
        reshaped = checkpoint is not None and checkpoint.marker.ranks != world.size
        engine = Engine(
            self.model,
            config.training,
            horizon,
            world,
            self.resolved.precision,
            reshaped=reshaped,
            companion=self.companion,
        )
        trainer = self._trainer(engine)
        if checkpoint is not None and checkpoint.path.parent == self.folder.checkpoints:
            trainer.resume(checkpoint)
        elif checkpoint is not None:
            trainer.begin_with(checkpoint)
        trainer.callbacks = [*callbacks, *self._callbacks(trainer.step)]
        self.write_facts("running", trainer)
        try:
            trainer.train()
            self._measure(trainer)
            weights = engine.state_dict()
            world.on_main(lambda: self._export(weights or {}))
        except BaseException as error:
            if is_stop(error):
                leave(EXIT_STOPPED)
                self._write_last("stopped", trainer)
            elif isinstance(error, DivergedError):
                self._write_last("failed", trainer)
            raise
        finally:
            engine.close()
        self._note("finished", trainer)
        if world.is_main:
            # No other rank waits for this: they are done.
            self._write_facts()
            self._print_summary()
        return self.facts

    @property
    def companion(self) -> Companion | None:
        """State that is saved in checkpoints besides the model's; None for none."""
        return None

    def _trainer(self, engine: Engine) -> Trainer:
        return Trainer(
            engine,
            self.data.objective_at,
            self.data.batches,
            self.resolved.horizon,
            self.resolved.config.training,
            self.world,
            self.folder.checkpoints,
            self.facts.model.flops_per_token,
            self.machine.flops,
            phase_starts=frozenset(phase.first for phase in self.data.phases[1:]),
        )

    def _checks(self, tracker: Tracker | None) -> list[Callback]:
        """Callbacks whose results belong into the checkpoint of their step."""
        return []

    def _measure(self, trainer: Trainer) -> None:
        """Measure the finished model before it is exported. Called on every rank."""

    def _find_checkpoint(self) -> checkpoints.Checkpoint | None:
        found, damaged = checkpoints.require(self.folder.checkpoints)
        checkpoints.clear_staging(self.folder.checkpoints)
        if damaged:
            self.console.print(checkpoints.describe_damage(damaged), style="bold red", markup=False, soft_wrap=True)
        # The step of a run that diverged is beyond its newest checkpoint.
        then = self.facts.step if self.facts.saved is None else self.facts.saved
        origin = self.facts.origin
        if found is None:
            if then:
                raise UserError(
                    f"{self.folder.path} reached step {then}, but there is no checkpoint in "
                    f"{self.folder.checkpoints}. Restore it, or train into another --output."
                )
            if origin is not None:
                found = origin_checkpoint(origin, self.options.origin)
            elif self.resumed:
                self.console.print(
                    f"{self.folder.path} was started before, but ended before its first checkpoint: "
                    "the run starts again at step 0.",
                    style="bold yellow",
                    markup=False,
                    soft_wrap=True,
                )
        if found is None:
            return None
        ranks = found.marker.ranks
        writers = "" if ranks == self.world.size else f", written by {format_count(ranks, 'rank')}"
        self.console.print(
            f"Resuming from {found.path}{writers}: step {found.marker.step:,} of {self.resolved.horizon.steps:,}.",
            markup=False,
            soft_wrap=True,
        )
        return found

    def _callbacks(self, step: int) -> list[Callback]:
        config = self.resolved.config
        opened: list[Tracker] = []
        self.world.on_main(lambda: opened.append(self._open_tracker(step)))
        tracker = opened[0] if opened else None
        made: list[Callback] = [Console(self.console)] if self.world.is_main else []
        made += [Tracking(tracker), *self._checks(tracker), _checkpointing(config.training), _Facts(self)]
        if self.validation is not None:
            made.append(Validating(self.validation, tracker, self.console))
        if config.training.evaluate_every:
            setups: list[EvaluationSetup] = []
            self.world.on_main(lambda: setups.append(self._prepare_evaluation()))
            made.append(
                Evaluation(
                    config.training.evaluate_every,
                    lambda model, step, check_stop: _figures(
                        evaluate_model(model, setups[0], step=step, progress=lambda *_: check_stop()).report
                    ),
                    tracker,
                )
            )
        return made

    def _open_tracker(self, step: int) -> Tracker:
        config = self.resolved.config
        # Trackers do not need each other's addresses.
        metadata = {
            "config": config.model_dump(mode="json", exclude={"tracking"}),
            "facts": self.facts.model_dump(mode="json"),
        }
        lines = keep_lines(self.folder, step)
        return Tracker(self.folder, open_trackers(config.tracking, self.folder, lines, metadata, self._warn))

    def _warn(self, line: str) -> None:
        _print_warning(self.console, line)

    def _prepare_evaluation(self) -> EvaluationSetup:
        return prepare_evaluation(self.data, kind=self.facts.kind, device=str(self.world.device), one_process=True)

    def _export(self, weights: Mapping[str, Tensor]) -> None:
        tokenizer = self.data.tokenizer
        with writing(self.folder.model):
            export_model(
                self.folder.model,
                self.model.causal,
                weights,
                self.data.extended_tokenizer,
                eos_id=tokenizer.eos_id,
                bos_id=tokenizer.bos_id,
                control_ids=[
                    *self.facts.tokenizer.added_ids,
                    *foreign_control_ids(tokenizer.fast, self.data.added_ids),
                ],
                context_length=self.facts.model.context_length,
                card=model_card(self.facts, self.resolved.horizon.steps),
            )

    def _print_summary(self) -> None:
        facts = self.facts
        self.console.print(
            f"Trained {format_count(facts.step, 'step')}, {format_count(facts.horizon.tokens, 'token')}, "
            f"in {format_duration(facts.seconds)} of steps. "
            f"The model is in {self.folder.model}; measure it with: {phf('evaluate', self.folder.path)}",
            markup=False,
            soft_wrap=True,
        )
        self._print_best()

    def _print_best(self) -> None:
        training, place = self.resolved.config.training, self.folder.checkpoints
        if training.best_metric is None:
            return
        best = best_steps(place, training.best_metric, training.best_mode)
        line = f"There is no best checkpoint: none has a value of {training.best_metric} (training.best_metric)."
        if best:
            value = read(place)[best[0]][training.best_metric]
            line = (
                f"By {training.best_metric}, the best checkpoint is that of step {best[0]:,} ({value:.4g}). Export its "
                f"model with: {phf('export-model', self.folder.path, '--best')}"
            )
        self.console.print(line, markup=False, soft_wrap=True)

    def write_facts(self, status: str, trainer: Trainer) -> None:
        """Update `run.json`. Called on every rank.

        Raises:
            IncompleteError: it cannot be written.
        """
        self._note(status, trainer)
        self.world.on_main(self._write_facts)

    def _write_last(self, status: str, trainer: Trainer) -> None:
        # The run is ending with an error, which a failure to write this file must not hide. Other ranks may be gone.
        self._note(status, trainer)
        if self.world.is_main:
            try:
                self._write_facts()
            except IncompleteError as error:
                self._warn(str(error))

    def _note(self, status: str, trainer: Trainer) -> None:
        # For a resumable run, record the step that it resumes from.
        began = 0 if self.facts.origin is None else self.facts.origin.step
        step = trainer.step if status in ("finished", "failed") else trainer.saved or began
        changes = {"status": status, "step": step, "saved": trainer.saved or 0, "seconds": trainer.seconds}
        self.facts = self.facts.model_copy(update=changes)

    def _write_facts(self) -> None:
        with writing(self.folder.facts):
            self.folder.write_facts(self.facts)


def _checkpointing(training: TrainingConfig) -> Checkpointing:
    return Checkpointing(training.save_every, loss=training.best_metric == LOSS)


class _Facts(Callback):
    """Updates `run.json` after each checkpoint, so that a lost checkpoint is noticed."""

    def __init__(self, job: TrainingJob) -> None:
        self.job = job

    def after_save(self, trainer: Trainer) -> None:
        """Record the checkpoint."""
        self.job.write_facts("running", trainer)


def check_settings(config: ResolvedConfig, ranks: int, options: StartOptions | None = None) -> Horizon:
    """Check what can be checked without the data, and return the horizon of the run on this number of ranks.

    Raises:
        UserError: the output folder holds something else, or model, context, batch and ranks do not fit together.
    """
    check_folder(RunFolder(Path(config.output)))
    check_best(config)
    check_guidance(config.objective, config.evaluation)
    check_trackers(config.tracking)
    check_context(config.model, config.data.context_length)
    horizon = plan_horizon(config.training, config.data.context_length, ranks)
    choose_resume_point(RunFolder(Path(config.output)), config, horizon, options or StartOptions())
    return horizon


def _prepare(config: ResolvedConfig, world: World, options: StartOptions) -> tuple[PreparedData, ResolvedRun]:
    # Check before tokenising, which can take hours.
    horizon = check_settings(config, world.size, options)
    RunFolder(Path(config.output)).check_new()
    run = resolve_run(config, horizon, world.device)
    check_network(config, world, run.precision)
    if world.is_main:
        with StageProgress() as progress:
            data = prepare(config, progress)
    else:
        data = prepare(config)
    run = replace(run, config=data.config)
    return data, fitted(run, data.tokenizer.size(data.added_ids), world.device)


def _smallest(micro_batch: int, world: World) -> int:
    """The smallest micro-batch of all ranks, which may differ where their GPUs do."""
    return -int(world.max(torch.tensor([-micro_batch])).item())


def _build(
    data: PreparedData, run: ResolvedRun, world: World, folder: RunFolder, console: Any, options: StartOptions
) -> TrainingJob:
    config, horizon = run.config, run.horizon
    model = build_network(data, world)
    seed_generators(config.training.seed, world.rank)
    planned_steps = world.on_main(lambda: initial_steps(folder)) or horizon.steps
    validation = choose_validation(data, horizon.steps, horizon.tokens_per_step, planned_steps)
    if validation is None and config.training.best_metric == VALIDATION_LOSS:
        raise UserError(f"training.best_metric={VALIDATION_LOSS}: {no_held_out(config.data, data.store.num_documents)}")
    new = build_run_facts(data, model, run, validation)
    resumed, facts = world.on_main(
        lambda: start(folder, config, horizon, new, options, partial(_print_warning, console))
    )
    run = replace(run, horizon=with_warmup(horizon, config, facts))
    data = replace(data, batches=skip_batches(data.batches, facts.skips))
    # Measure on all ranks at once, because they share the machine in a step too.
    machine = this_machine(world.device, peak_flops(world.device, run.precision), world.size)
    if world.is_main:
        left = horizon.steps - facts.step
        step_seconds = expected_seconds(run, facts.tokenizer.vocab_size, machine)
        expected = describe_duration(step_seconds, left, horizon.tokens_per_step)
        in_all = None if step_seconds is None else step_seconds * horizon.steps
        facts = facts.model_copy(update={"expected_seconds": in_all})
        print_plan(console, run, facts, model, world, expected)
        seconds, epochs = None if step_seconds is None else step_seconds * left, facts.horizon.epochs
        costs = cost_warning(seconds, epochs, horizon.tokens / epochs, machine, world.size)
        rounded = warn_rounded_gradients(run.deepspeed(parameters=1), config.training.deepspeed)
        held_out = len(data.stream.held_out_documents())
        unseen = None if held_out else f"Warning: {no_held_out(config.data, data.store.num_documents)}"
        schedule = schedule_warning(config.training, horizon.steps)
        for warning in (*data.warnings, *filter(None, [costs if left else None, schedule, unseen, rounded])):
            _print_warning(console, warning)
    return TrainingJob(world, folder, run, data, model, facts, console, resumed, machine, validation, options)


def _figures(report: EvaluationReport) -> dict[str, float]:
    estimates = {"bits_per_byte": report.held_out.bits_per_byte if report.held_out is not None else None}
    guided = report.guided.samples if report.guided is not None else None
    for prefix, samples in (("", report.samples), ("guided_", guided)):
        if samples is not None:
            estimates[f"{prefix}misalignment"] = samples.misalignment
            estimates[f"{prefix}expected_maximum"] = samples.expected_maximum
            estimates[f"{prefix}hit_rate"] = samples.hit_rate
    figures: dict[str, float] = {}
    for name, estimate in estimates.items():
        if estimate is not None:
            figures[name] = estimate.value
            if estimate.low is not None and estimate.high is not None:
                figures |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return figures
