"""`phf match` from its settings to an exported model: prepare, find the target, train, measure."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scorers.amounts import format_count
from scorers.errors import UserError
from training.disk import write_atomically, writing
from training.distributed.failures import failures_named
from training.distributed.world import World
from training.engine.deepspeed_config import DTYPES
from training.engine.engine import Companion, Engine, seed_generators
from training.engine.timing import peak_flops
from training.loop.build_facts import build_run_facts
from training.loop.callbacks import Callback
from training.loop.continuation import StartOptions, has_work_left, start, with_warmup
from training.loop.run_network import build_network
from training.loop.train import TrainingJob
from training.loop.trainer import Trainer
from training.matching.checking import Checking
from training.matching.divergence import DIVERGENCES
from training.matching.drawing import key_of
from training.matching.energy import EnergyModel, fit
from training.matching.estimates import log_mean
from training.matching.matcher import Matcher
from training.matching.measure import measure
from training.matching.objective import WeightedLikelihood
from training.matching.prepare import MatchRequest, PreparedMatch, prepare_match
from training.matching.sampled_batches import SampledBatches
from training.matching.session import Session
from training.model.build_network import use_attention
from training.model.language_model import LanguageModel, load_model
from training.planning.machines import this_machine
from training.runs.facts import MatchingFacts, RunFacts
from training.runs.folder import RunFolder
from training.runs.lock import sole_launch
from training.runs.matching_report import MatchingReport, matching_path, read_matching
from training.runs.report import run_fingerprint
from training.trackers.tracker import Tracker


def match(request: MatchRequest, console: Any, callbacks: Sequence[Callback] = ()) -> tuple[RunFacts, MatchingReport]:
    """Move a finished run to its targets, or resume that. Called on every rank.

    Args:
        request: from `training.matching.prepare.check_request`.
        console: the `rich.console.Console` that rank 0 prints on.
        callbacks: called before the callbacks that every run has.

    Returns:
        The facts of the run that was made, and its report.

    Raises:
        UserError: the settings, the data or the output folder are wrong, or samples of the run cannot give the target.
        StoppedError: a signal asked the run to stop; it is saved and resumable.
        IncompleteError: the disk is full, the run diverged, or another rank is gone.
    """
    world, folder = World.from_environment(), RunFolder(Path(request.config.output))
    made = world.first(lambda: prepare_match(request, world))
    with failures_named():
        world.start()
        lock, warn = ExitStack(), partial(_print, console, style="bold yellow")
        try:
            unfinished = partial(has_work_left, folder, made.run.horizon, StartOptions())
            world.on_main(lambda: lock.enter_context(sole_launch(folder, warn)) if unfinished() else None)
            job = _build(made, world, folder, console)
            if not world.on_main(lambda: _is_finished(folder)):
                job.run(callbacks)
            elif world.is_main:
                _print(console, f"{folder.path} is finished; its model is in {folder.model}.")
            report = world.on_main(lambda: read_matching(folder))
            if report is None:
                raise UserError(f"{matching_path(folder)} is missing. Restore it, or match into another --output.")
            return job.facts, report
        finally:
            lock.close()
            world.stop()


def _is_finished(folder: RunFolder) -> bool:
    return folder.facts.is_file() and folder.read_facts().status == "finished" and folder.model.is_dir()


def _print(console: Any, line: str, style: str | None = None) -> None:
    console.print(line, style=style, markup=False, soft_wrap=True)


@dataclass
class MatchJob(TrainingJob):
    """A prepared run of `phf match`.

    Attributes:
        made: its settings and data.
        session: its models.
    """

    made: PreparedMatch
    session: Session

    @property
    def companion(self) -> Companion | None:
        """The proposal, and what the weights of samples depend on."""
        return self.session

    def _trainer(self, engine: Engine) -> Trainer:
        horizon, words = self.resolved.horizon, self.made.vocabulary
        objective = WeightedLikelihood(banned_ids=words.banned_ids, vocab_size=words.size, eos_id=words.eos_id)
        return Trainer(
            engine,
            lambda _: objective,
            SampledBatches(self.session, self.model, horizon.batch_size, horizon.predicted_per_step),
            horizon,
            self.resolved.config.training,
            self.world,
            self.folder.checkpoints,
            self.facts.model.flops_per_token,
            self.machine.flops,
            ahead=0,
        )

    def _checks(self, tracker: Tracker | None) -> list[Callback]:
        config = self.made.request.config
        return [
            Checking(self.session, config.check_every, config.check_samples, config.closer_by, tracker, self.console)
        ]

    def _measure(self, trainer: Trainer) -> None:
        facts, config = self.facts.matching, self.made.request.config
        if facts is None:
            raise ValueError("a run of phf match has facts about it")
        report = measure(self.session, self.model, facts, trainer.step, config.report_samples)
        path = matching_path(self.folder)

        def write() -> None:
            with writing(path):
                write_atomically(path, report.model_dump_json(indent=2) + "\n")

        self.world.on_main(write)


def _build(made: PreparedMatch, world: World, folder: RunFolder, console: Any) -> MatchJob:
    run, config, warn = made.run, made.request.config, partial(_print, console, style="bold yellow")
    model = build_network(made.data, world)
    # The loss needs the logits of the tokens that can be sampled alone.
    model.has_linear_head = False
    seed_generators(config.training.seed, world.rank)
    session = Session(world, _prior(made, world), made.drawer(), made.judges, on_policy=config.method == "reinforce")
    facts = _facts(made, model, _target(made, session, folder, world, console))
    session.energy, session.matcher = _restored(made, facts)
    resumed, facts = world.on_main(lambda: start(folder, run.config, run.horizon, facts, StartOptions(), warn))
    horizon = with_warmup(run.horizon, run.config, facts)
    machine = this_machine(world.device, peak_flops(world.device, run.precision), world.size)
    if world.is_main:
        _print_plan(console, made, facts)
        for warning in made.warnings:
            warn(warning)
    return MatchJob(
        world, folder, replace(run, horizon=horizon), made.data, model, facts, console,
        resumed, machine, None, StartOptions(), made, session,
    )  # fmt: skip


def _prior(made: PreparedMatch, world: World) -> Any:
    """The model before, as the engine would compute it: parameters in the precision of the training."""
    prior = load_model(made.request.source.model, value_head=False).causal
    use_attention(prior, made.run.config.model)
    for parameter in prior.parameters():
        # Buffers keep their type, as in training: rotary frequencies would change in bf16.
        parameter.data = parameter.data.to(DTYPES[made.run.precision])
    return prior.to(world.device).eval().requires_grad_(False)


def _target(made: PreparedMatch, session: Session, folder: RunFolder, world: World, console: Any) -> MatchingFacts:
    """The facts about the target: those of the run in the folder, or else found from samples of the run before."""
    source, config = made.request.source, made.request.config
    known = world.on_main(lambda: folder.read_facts().matching if folder.facts.is_file() else None)
    own: dict[str, Any] = {
        "run": config.run,
        "fingerprint": world.on_main(lambda: run_fingerprint(source)),
        "settings": made.settings,
        "scorers": made.fingerprints,
    }
    if known is not None:
        return known.model_copy(update=own)
    constraints = made.request.constraints
    if world.is_main:
        _print(console, f"Drawing {format_count(config.moment_samples, 'sample')} of {source.path} for the target.")
    features = session.prior_features(key_of("moments"), config.moment_samples)
    energy = world.on_main(lambda: fit(constraints, features))
    factor = energy.log_factor(features)
    return MatchingFacts(
        **own,
        constraints=[str(each) for each in constraints],
        lambdas=list(energy.lambdas),
        log_z=float(log_mean(factor)),
        before=np.nanmean(features, axis=0).tolist(),
        samples=len(features),
        outside=int(np.isneginf(factor).sum()),
    )


def _restored(made: PreparedMatch, facts: RunFacts) -> tuple[EnergyModel, Matcher]:
    target = facts.matching
    if target is None:
        raise ValueError("a run of phf match has facts about it")
    energy = EnergyModel(made.request.constraints, tuple(target.lambdas))
    divergence = DIVERGENCES[made.request.config.chosen_divergence]
    return energy, Matcher(divergence, made.contexts.per_context, target.log_z, target.samples)


def _facts(made: PreparedMatch, model: LanguageModel, target: MatchingFacts) -> RunFacts:
    facts = build_run_facts(made.data, model, made.run)
    source = made.request.source.read_config()
    return facts.model_copy(
        update={
            "matching": target,
            # Samples are not text of the dataset, and blocks hold no more than one of them.
            "horizon": facts.horizon.model_copy(update={"epochs": 0.0}),
            "phases": [],
            "model": facts.model.model_copy(
                update={"name": source.model.name, "context_length": source.data.context_length}
            ),
        }
    )


def _print_plan(console: Any, made: PreparedMatch, facts: RunFacts) -> None:
    target, config, horizon = facts.matching, made.request.config, made.run.horizon
    if target is None:
        return
    rows = [
        f"Matching {made.request.source.path} ({facts.objective}, {facts.column}) by "
        f"{config.method}, {config.chosen_divergence}: {format_count(horizon.steps, 'step')} of "
        f"{format_count(horizon.batch_size, 'sample')}, {format_count(len(made.contexts.every), 'context')}.",
        *(
            f"  {constraint}  (now {before:.4g}" + (f", lambda {weight:.4g})" if weight else ", pointwise)")
            for constraint, before, weight in zip(target.constraints, target.before, target.lambdas, strict=True)
        ),
        f"  {target.samples - target.outside:,} of {format_count(target.samples, 'sample')} are in the target.",
    ]
    for row in rows:
        _print(console, row)
