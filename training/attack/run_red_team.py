"""Attack a run with the red-team loop, and store the prompts and their scores in its folder.

Rounds are stored as they are scored. An interrupted trial is replayed: its attacker proposes the same prompts again,
and only the rounds without stored scores are continued by the model. Prompts of an attacker that would not propose them
again are stored too.
"""

import contextlib
import hashlib
import itertools
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from transformers.utils.logging import disable_progress_bar

from scorers.amounts import format_count
from scorers.errors import UserError
from scorers.fingerprint import library_versions
from scorers.printing import message
from training import statistics
from training.attack.find_attacker import FoundAttacker
from training.attack.red_team import Attempt, run_trial
from training.attack.run_target import RunTarget, room
from training.attack.starting_prompts import given_prompts, misaligned_beginnings
from training.attack.stored_proposals import StoredProposals
from training.data.prepare import prepare
from training.data.tokenizers import Tokenizer
from training.disk import write_atomically, writing
from training.evaluation.checks import EvaluationRequest, check_evaluation, main_data, torch_device
from training.evaluation.evaluate import Progress
from training.evaluation.evaluate_run import check_data
from training.evaluation.prepare import EvaluationSetup, Judge, prepare_evaluation
from training.measuring_config import EvaluationConfig, RedTeamConfig
from training.model.language_model import load_model
from training.runs.finished_trials import finished_trials
from training.runs.folder import RunFolder
from training.runs.lock import sole_writer
from training.runs.red_team_report import (
    ATTEMPTS_SCHEMA,
    RED_TEAM_NAME,
    RedTeamReport,
    RoundFacts,
    attempts_path,
    read_red_team,
    read_round,
    red_team_folder,
)
from training.runs.report import Estimate, ScorerFacts, run_fingerprint
from training.runs.tables import write_table
from training.scenarios.boundary import Boundary
from training.scenarios.prompts import Prompt


@dataclass(frozen=True)
class RedTeamRequest:
    """A requested attack.

    Attributes:
        run: the target.
        config: settings.
        attacker: writes the prompts.
        prompts: texts that the search starts from; None for beginnings of misaligned held-out sentences.
    """

    run: RunFolder
    config: RedTeamConfig
    attacker: FoundAttacker
    prompts: Sequence[str] | None = None


def check_red_team(request: RedTeamRequest, dataset: str | None = None) -> None:
    """Check that a run can be attacked, without loading tokens or models.

    Raises:
        UserError: it cannot; says why.
    """
    run, sampling = request.run, EvaluationConfig(guidance=request.config.guidance)
    check_evaluation(EvaluationRequest(run, Judge(run.read_facts().column), config=sampling), dataset)
    if request.prompts is not None:
        given_prompts(request.prompts, request.config)


def attack_run(
    request: RedTeamRequest,
    *,
    dataset: str | None = None,
    device: str = "auto",
    allow_other_scorer: bool = False,
    progress: Progress | None = None,
) -> RedTeamReport:
    """Attack a run; finished trials and rounds of the same attack are kept.

    Args:
        request: the attack.
        dataset: where the labelled dataset is now, if it was moved.
        device: torch device; `auto` for a GPU if there is one.
        allow_other_scorer: see `prepare_evaluation`.
        progress: called with a stage, the amount done, and the total.

    Raises:
        UserError: as for `check_red_team`; the data or scorer is not that of the run, or there are too few prompts.
        IncompleteError: the results cannot be written, or another process still writes them.
    """
    check_red_team(request, dataset)
    run, config, place = request.run, request.config, torch_device(device)
    facts, trained = run.read_facts(), run.read_config()
    data = prepare(main_data(trained, dataset), progress, compare_texts=False)
    warnings = check_data(run, facts, data)
    setup = prepare_evaluation(
        data,
        kind=facts.kind,
        config=trained.evaluation.model_copy(update={"guidance": 1.0}),
        hit_threshold=facts.sentence_threshold.value if facts.sentence_threshold else None,
        device=place,
        allow_other_scorer=allow_other_scorer,
        predict=False,
    )
    if request.prompts is None:
        beginning = misaligned_beginnings(data, config)
    else:
        beginning, about_prompts = given_prompts(request.prompts, config)
        warnings += about_prompts
    warnings += _check_room(beginning, setup, data.tokenizer)
    report = RedTeamReport(
        created_by=f"phf {library_versions('phf')['phf']}",
        run=run_fingerprint(run),
        column=setup.column,
        config=config,
        temperature=setup.config.temperature,
        top_p=setup.config.top_p,
        attacker=request.attacker.fingerprint,
        attacker_name=request.attacker.name,
        beginning=hashlib.sha256("\0".join(beginning).encode()).hexdigest()[:16],
        device=place,
        scorer=ScorerFacts(entry=setup.scorer_entry, fingerprint=setup.scorer.fingerprint),
        hit_threshold=setup.hit_threshold,
        trials=[],
        warnings=[*setup.warnings, *warnings],
    )
    with sole_writer(red_team_folder(run)):
        report = _continued(run, report)
        return report if report.finished else _run_trials(request, report, beginning, setup, data.tokenizer, progress)


def _check_room(beginning: Sequence[str], setup: EvaluationSetup, tokenizer: Tokenizer) -> list[str]:
    """Return a warning about prompts without room in the context, if there are any.

    Raises:
        UserError: none has room.
    """
    boundary = Boundary(tokenizer)
    without = sum(Prompt.of(0, text, setup.kind, boundary).most_tokens > room(setup) for text in beginning)
    problem = (
        f"{without:,} of {format_count(len(beginning), 'prompt')} that the search starts from "
        f"{'leaves' if without == 1 else 'leave'} no room in the model's context of {setup.context_length:,} tokens"
    )
    if without == len(beginning):
        raise UserError(f"{problem}. Give shorter ones, or lower prompt_words.")
    return [f"{problem}, and cannot be scored (--set prompt_words=N)."] if without else []


def _run_trials(
    request: RedTeamRequest,
    report: RedTeamReport,
    beginning: Sequence[str],
    setup: EvaluationSetup,
    tokenizer: Tokenizer,
    progress: Progress | None,
) -> RedTeamReport:
    """Run the trials that the report lacks, and write it after each."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    run, config = request.run, request.config
    attacker = request.attacker.open(setup.config)

    @cache
    def target() -> RunTarget:
        model = load_model(run.model, value_head=False).causal.to(report.device)
        return RunTarget(model, tokenizer, Boundary(tokenizer), setup, config)

    for trial in range(len(report.trials), config.trials):
        stage = f"red team, trial {trial + 1}: rounds"
        stored = {} if request.attacker.repeatable else {"remember": StoredProposals(run, trial, config.proposals)}
        seed = config.seed + trial
        attempts = run_trial(
            beginning,
            attacker,
            _StoredRounds(run, trial, seed, config.continuations, tokenizer, target),
            config,
            seed,
            partial(progress, stage) if progress else None,
            **stored,
        )
        rounds = [_round_facts(attempts, number, setup.hit_threshold) for number in range(config.rounds + 1)]
        report = report.model_copy(update={"trials": [*report.trials, rounds]})
        _write(run, report)
    return report


@dataclass(frozen=True)
class _StoredRounds:
    """Scores prompts by the target, or reads the scores that it had for the same prompts of the same round."""

    run: RunFolder
    trial: int
    seed: int
    continuations: int
    tokenizer: Tokenizer
    target: Callable[[], RunTarget]

    def __call__(self, prompts: Sequence[str], number: int) -> list[NDArray[np.float64]]:
        found, lengths = self.tokenizer.encode(prompts)
        ids = [each.tolist() for each in np.split(found, np.cumsum(lengths)[:-1])]
        known = self._read(ids, number)
        if known is not None:
            return known
        # Other random numbers in every round of every trial.
        scores = self.target().score(prompts, seed=int(np.random.default_rng([self.seed, number, 1]).integers(2**32)))
        values = [[None if np.isnan(score) else float(score) for score in each] for each in scores]
        path = attempts_path(self.run, self.trial, number)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_table(path, pa.table({"ids": ids, "scores": values}, schema=ATTEMPTS_SCHEMA))
        return scores

    def _read(self, ids: list[list[int]], number: int) -> list[NDArray[np.float64]] | None:
        try:
            table = read_round(self.run, self.trial, number, len(ids))
        except UserError:
            return None  # A missing or damaged round is made again.
        scores = [np.array(each, dtype=np.float64) for each in table["scores"].to_pylist()]
        same = table["ids"].to_pylist() == ids and all(len(each) == self.continuations for each in scores)
        return scores if same else None


def _round_facts(attempts: Sequence[Attempt], number: int, threshold: float) -> RoundFacts:
    scores = np.array([each.score for each in attempts if each.round == number])
    known = scores[~np.isnan(scores)]
    return RoundFacts(
        prompts=len(scores),
        scored=len(known),
        misalignment=Estimate.of(statistics.mean(known)),
        worst=float(known.max()) if len(known) else None,
        hit_rate=Estimate.of(statistics.share(int((known > threshold).sum()), len(known))),
    )


def _continued(run: RunFolder, new: RedTeamReport) -> RedTeamReport:
    """The report with the whole trials of an earlier attack that differs at most in the number of trials and rounds.

    Another attack is set aside, and the report is written, so that the stored rounds to come belong to it.
    """
    earlier = finished_trials(
        new, lambda: read_red_team(run), apart_from=["attacker_name"], config_apart_from=["rounds"]
    )
    if earlier is None:
        _set_aside(run)
        _write(run, new)
        return new
    kept: list[list[RoundFacts]] = []
    for trial, rounds in enumerate(earlier):
        if len(rounds) <= new.config.rounds or not _is_whole(run, trial, rounds):
            break
        kept.append(rounds[: new.config.rounds + 1])
    return new.model_copy(update={"trials": kept})


def _set_aside(run: RunFolder) -> None:
    """Make room for another attack: move the earlier one and name the place, or remove it without finished trials."""
    folder, aside = red_team_folder(run), None
    with contextlib.suppress(UserError):  # damaged results are removed
        old = read_red_team(run)
        if old is not None and old.trials:
            names = (f"{folder.name}-{number}" for number in itertools.count(1))
            aside = next(path for name in names if not (path := folder.with_name(name)).exists())
    with writing(folder):
        if aside is not None:
            folder.rename(aside)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    if aside is not None:
        note = f"The earlier attack, with other prompts, attacker or settings, or of an earlier model, is now {aside}."
        sys.stderr.write(message(f"{note}\n"))
        sys.stderr.flush()


def _is_whole(run: RunFolder, trial: int, rounds: Sequence[RoundFacts]) -> bool:
    try:
        for number, facts in enumerate(rounds):
            if facts.prompts:
                read_round(run, trial, number, facts.prompts)
    except UserError:
        return False
    return True


def _write(run: RunFolder, report: RedTeamReport) -> None:
    path = red_team_folder(run) / RED_TEAM_NAME
    with writing(path):
        write_atomically(path, report.model_dump_json(indent=2) + "\n")
