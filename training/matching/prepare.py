"""Prepare a run of `phf match`: check the settings and the run to match, read prompts, and build scorers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.dataset import open_dataset
from scorers.contract import Execution, Scorer
from scorers.errors import UserError
from scorers.registry import parse_scorers
from scorers.trusted_pickles import trusted_by_user
from training.config import ModelConfig, ResolvedConfig, TrainingConfig
from training.data.prepare import PreparedData, prepare
from training.distributed.world import World
from training.evaluation.checks import check_model, main_data
from training.evaluation.evaluate_run import check_data
from training.evaluation.prepare import Judge, build_judge, prepare_evaluation
from training.loop.continuation import StartOptions, choose_resume_point
from training.loop.resume import check_folder
from training.loop.run_network import check_network
from training.matching.config import MatchConfig
from training.matching.constraints import Constraint, parse_constraints
from training.matching.contexts import Contexts, choose_contexts, needs_file
from training.matching.divergence import DIVERGENCES
from training.matching.drawing import Drawer, Vocabulary
from training.matching.scoring import Judges
from training.objectives import MLE
from training.planning.resolved_run import ResolvedRun, resolve_run
from training.progress import StageProgress
from training.runs.folder import RunFolder
from training.scenarios.prompts import GivenPrompt, read_prompts
from training.schedule import plan_horizon
from training.scorer_pool import pooled
from training.trackers.open import check_trackers

# Settings that do not decide the outcome, or that are recorded elsewhere.
_ELSEWHERE = {"run", "output", "prompts", "training", "tracking", "steps", "sample_batch_size"}


@dataclass(frozen=True)
class MatchRequest:
    """Settings that were checked without reading data or weights.

    Attributes:
        config: the settings.
        constraints: parsed.
        source: the run to match.
        records: of a file of prompts; None without.
        dataset: where the labelled dataset is now, if it was moved.
        allow_other_scorer: accept a scorer that is not the one that labelled the data.
    """

    config: MatchConfig
    constraints: tuple[Constraint, ...]
    source: RunFolder
    records: list[GivenPrompt] | None
    dataset: str | None = None
    allow_other_scorer: bool = False


@dataclass(frozen=True)
class PreparedMatch:
    """Everything of a run of `phf match` but its weights.

    Attributes:
        request: the settings.
        run: settings of the run that is made, and what follows from them.
        data: of the run, with the network to start from.
        contexts: what samples continue.
        judges: score samples.
        fingerprints: of the scorers.
        vocabulary: the tokens of samples.
        warnings: to print before the first step.
    """

    request: MatchRequest
    run: ResolvedRun
    data: PreparedData
    contexts: Contexts
    judges: Judges
    fingerprints: dict[str, str]
    vocabulary: Vocabulary
    warnings: list[str]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide the outcome, and a hash of the prompts."""
        config = self.request.config
        return {
            **config.model_dump(mode="json", exclude=_ELSEWHERE),
            "divergence": config.chosen_divergence,
            "prompts, as tokens": self.contexts.fingerprint,
        }

    def drawer(self) -> Drawer:
        """What draws the samples."""
        config = self.request.config
        return Drawer(
            self.contexts,
            self.vocabulary,
            config.max_new_tokens,
            config.training.seed,
            config.sample_batch_size,
            self.run.horizon.micro_batch_size,
        )


def check_request(
    config: MatchConfig, ranks: int, *, dataset: str | None = None, allow_other_scorer: bool = False
) -> MatchRequest:
    """Check what can be checked before any work.

    Raises:
        UserError: settings do not fit together; the run to match has no model, or its dataset has no such column; the
            output holds something else; or the prompts cannot be read.
    """
    constraints = parse_constraints(config.constraints)
    source, folder = RunFolder.existing(config.run), RunFolder(Path(config.output))
    if source.path.resolve() == folder.path.resolve():
        raise UserError(f"--output {folder.path} is the run that is matched. Give another folder.")
    if check_folder(folder) and folder.read_facts().matching is None:
        raise UserError(f"--output {folder.path} holds a run of phf train. Give another folder.")
    check_model(source)
    _check_pointwise(config, constraints)
    check_trackers(config.tracking)
    least = min(config.check_samples, config.moment_samples, config.report_samples, config.training.batch_size)
    if least < ranks or config.training.batch_size % ranks:
        raise UserError(
            f"training.batch_size={config.training.batch_size} samples cannot be divided among {ranks} ranks, or "
            "there are fewer samples than ranks. Choose a multiple."
        )
    if config.prompts is not None:
        for name in ("check_samples", "moment_samples", "report_samples"):
            if getattr(config, name) % config.samples_per_prompt:
                raise UserError(
                    f"{name}={getattr(config, name)} is not a multiple of samples_per_prompt="
                    f"{config.samples_per_prompt}. Choose one."
                )
    trained = main_data(source.read_config(), dataset)
    labelled = open_dataset(trained.data.dataset)
    specs = parse_scorers(config.scorers)
    for each in constraints:
        if each.column not in specs and each.column not in labelled.manifest.scorers:
            known = ", ".join([*labelled.manifest.scorers, *specs])
            raise UserError(
                f"The constraint '{each}': the dataset has no column {each.column!r} (its columns: {known}). Name one "
                f"of them, or give its scorer: --scorer {each.column}=KIND."
            )
    unused = set(specs) - {each.column for each in constraints}
    if unused:
        raise UserError(f"--scorer {min(unused)}: no constraint is on it. Add one, or leave the scorer out.")
    records = None
    if config.prompts is not None and needs_file(config.prompts):
        records = read_prompts(config.prompts, config.prompt_field)
    elif config.prompt_field is not None:
        raise UserError("prompt_field is a field of a file of prompts. Give --prompts FILE, or leave it out.")
    folder.check_new()
    return MatchRequest(config, constraints, source, records, dataset, allow_other_scorer)


def prepare_match(request: MatchRequest, world: World) -> PreparedMatch:
    """Open the data, the tokenizer and the scorers, and choose the prompts. Needs no process group.

    Raises:
        UserError: they are not those that the run was trained with, or prompts do not fit.
    """
    config, source = request.config, request.source
    facts, trained = source.read_facts(), main_data(source.read_config(), request.dataset)
    if world.is_main:
        with StageProgress() as progress:
            data = prepare(trained, progress, compare_texts=False)
    else:
        data = prepare(trained, compare_texts=False)
    warnings = check_data(source, facts, data)
    device = str(world.device)
    setup = prepare_evaluation(data, kind=facts.kind, device=device, predict=False, one_process=True,
                               allow_other_scorer=request.allow_other_scorer)  # fmt: skip
    scorers, fingerprints, about = _scorers(request, data, world)
    judges = Judges(request.constraints, scorers, data.tokenizer, facts.kind)
    contexts = choose_contexts(
        data, setup, config.prompts, request.records, config.samples_per_prompt, config.max_new_tokens,
        config.training.seed,
    )  # fmt: skip
    run = _resolve(config, data.config, contexts.longest + config.max_new_tokens, world)
    check_network(run.config, world, run.precision)
    folder = RunFolder(Path(config.output))
    choose_resume_point(folder, run.config, run.horizon, StartOptions())
    network = _network(run.config, source)
    return PreparedMatch(
        request,
        run,
        replace(data, config=network, objective=MLE()),
        contexts,
        judges,
        fingerprints,
        Vocabulary(setup.eos_id, tuple(setup.banned_ids), setup.vocab_size),
        [*warnings, *about],
    )


def _check_pointwise(config: MatchConfig, constraints: tuple[Constraint, ...]) -> None:
    name = config.chosen_divergence
    hard = [each for each in constraints if each.pointwise]
    if hard and not DIVERGENCES[name].bounded:
        what = "--method reinforce lowers" if config.method == "reinforce" else "divergence reverse-kl is"
        raise UserError(
            f"The constraint '{hard[0]}' allows no exception, and {what} the reverse KL, which is infinite as long as "
            "one can occur. Give a share below 1, such as 0.999, or another divergence."
        )
    soft = [each for each in constraints if not each.pointwise]
    if soft and config.prompts is not None:
        raise UserError(
            f"The constraint '{soft[0]}': with prompts every prompt has a target of its own, so only constraints with "
            "a share of 1 are possible. Give a share of 1, or leave the prompts out."
        )


def _scorers(
    request: MatchRequest, data: PreparedData, world: World
) -> tuple[Mapping[str, Scorer], dict[str, str], list[str]]:
    specs = parse_scorers(request.config.scorers)
    scorers: dict[str, Scorer] = {}
    warnings: list[str] = []
    for column in dict.fromkeys(each.column for each in request.constraints):
        spec = specs.get(column)
        device = str(world.device)
        scorer, entry, about = build_judge(
            Judge(column, spec), data.dataset, device=device, allow_other=request.allow_other_scorer
        )
        if world.size == 1:
            # Several ranks use the cores already.
            execution = Execution(device=device)
            if spec is not None:
                execution = Execution(device=device, trusted_sha256=trusted_by_user([spec.options]))
            scorer = pooled(scorer, entry, execution)
        scorers[column] = scorer
        warnings += about
    return scorers, {name: each.fingerprint for name, each in scorers.items()}, warnings


def _resolve(config: MatchConfig, trained: ResolvedConfig, block: int, world: World) -> ResolvedRun:
    """The settings of the run that is made: those of the run before, with the training of `phf match`."""
    given = config.training.model_dump()
    training = TrainingConfig.model_validate({**given, "num_tokens": config.steps * config.training.batch_size * block})
    objective = trained.objective.model_copy(update={"starts_at": 0.0, "cooldown": 0.0})
    changes = {"output": config.output, "training": training, "objective": objective, "tracking": config.tracking}
    resolved = trained.model_copy(update=changes)
    return resolve_run(resolved, plan_horizon(training, block, world.size), world.device)


def _network(config: ResolvedConfig, source: RunFolder) -> ResolvedConfig:
    model = config.model
    start = ModelConfig(
        name=str(source.model), pretrained=True, attention=model.attention, kernels=model.kernels,
        pad_vocab_to=model.pad_vocab_to,
    )  # fmt: skip
    data = config.data.model_copy(update={"document_masking": False})
    return config.model_copy(update={"model": start, "data": data})
