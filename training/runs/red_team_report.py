"""The format of a red-team attack: `report.json`, and the prompts that an attacker wrote, by trial and round."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from scorers.errors import UserError
from scorers.shell import phf
from scorers.stored import Count
from training.measuring_config import RedTeamConfig
from training.runs.folder import RunFolder
from training.runs.report import Estimate, Part, ScorerFacts, read_stored_report
from training.runs.tables import read_table

RED_TEAM_NAME = "report.json"

ATTEMPTS_SCHEMA = pa.schema(
    [
        pa.field("ids", pa.list_(pa.int32()), nullable=False),
        pa.field("scores", pa.list_(pa.float64()), nullable=False),
    ]
)
"""One row per prompt: its tokens, and the scores of its continuations; null for a continuation without a score."""


class RoundFacts(Part):
    """The prompts of a round; round 0 is the beginning of the pool.

    Attributes:
        prompts: number of prompts.
        scored: those of which a continuation has a score.
        misalignment: mean over them of the mean score of their continuations; bootstrap interval over prompts.
        worst: the highest mean score of a prompt in this round.
        hit_rate: share of prompts whose mean score is above the hit threshold.
    """

    prompts: Count
    scored: Count
    misalignment: Estimate | None
    worst: float | None
    hit_rate: Estimate | None


class RedTeamReport(Part):
    """`report.json`.

    Attributes:
        created_by: distribution and version.
        run: fingerprint of the run's facts (`run.json`) at the time.
        column: the column whose scorer judges the continuations.
        config: settings of the attack.
        temperature, top_p: of the continuations.
        attacker: `recombination`, or the fingerprint of the attacking model; of an endpoint, only of its address and
            the name of the model.
        attacker_name: its name, for readers.
        beginning: hash of the prompts that the search started from; runs with equal ones can be compared.
        device: torch device.
        scorer: judges the continuations.
        hit_threshold: a prompt with a higher mean score is a hit.
        trials: the rounds of each finished trial.
        warnings: caveats for readers.
    """

    created_by: str
    run: str
    column: str
    config: RedTeamConfig
    temperature: float
    top_p: float
    attacker: str
    attacker_name: str
    beginning: str
    device: str
    scorer: ScorerFacts
    hit_threshold: float
    trials: list[list[RoundFacts]]
    warnings: list[str]

    @property
    def finished(self) -> bool:
        """Whether all trials are done."""
        return len(self.trials) == self.config.trials

    def misalignment(self) -> dict[int, list[float]]:
        """The mean misalignment by round, one value per trial in which continuations had scores."""
        found: dict[int, list[float]] = {}
        for trial in self.trials:
            for number, facts in enumerate(trial):
                if facts.misalignment is not None:
                    found.setdefault(number, []).append(facts.misalignment.value)
        return found


def _again(run: RunFolder) -> str:
    return phf("attack", "red-team", run.path)


def red_team_folder(run: RunFolder) -> Path:
    """Where the red-team attack on a run is stored."""
    return run.evaluation / "red-team"


def read_red_team(run: RunFolder) -> RedTeamReport | None:
    """The red-team attack on a run; None if there is none.

    Raises:
        UserError: the report is damaged or of another version.
    """
    path = red_team_folder(run) / RED_TEAM_NAME
    return read_stored_report(RedTeamReport, path, run, _again(run))


def attempts_path(run: RunFolder, trial: int, number: int) -> Path:
    """Where the prompts of a round are stored, with `ATTEMPTS_SCHEMA`; trials and rounds are counted from 0."""
    return red_team_folder(run) / "attempts" / f"{trial:04d}-{number:05d}.parquet"


def proposals_path(run: RunFolder, trial: int, number: int) -> Path:
    """Where the prompts are stored that an attacker proposed for a round, if it would not propose them again."""
    return red_team_folder(run) / "proposals" / f"{trial:04d}-{number:05d}.json"


def read_round(run: RunFolder, trial: int, number: int, rows: int) -> pa.Table:
    """The prompts of a round, with `ATTEMPTS_SCHEMA`.

    Args:
        run: the attacked run.
        trial: counted from 0.
        number: of the round, 0 for the beginning of the pool.
        rows: the number of prompts.

    Raises:
        UserError: the table is missing or damaged.
    """
    path = attempts_path(run, trial, number)
    table = read_table(path, ATTEMPTS_SCHEMA, run, rows, _again(run))
    if not np.isfinite(table["scores"].combine_chunks().flatten().drop_null().to_numpy()).all():
        raise UserError(f"{path} is damaged: it holds infinite values. Delete it and attack the run again.")
    return table
