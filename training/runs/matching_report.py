"""The format of the report of `phf match`: each target, and what samples of the finished model reach."""

from pathlib import Path
from typing import Literal

from scorers.shell import phf
from scorers.stored import Count
from training.runs.folder import RunFolder
from training.runs.report import Estimate, Part, read_stored_report

MATCHING_NAME = "matching.json"


class ConstraintReport(Part):
    """A constraint.

    Attributes:
        constraint: as users write it.
        wanted: the moment of its feature.
        before: that of samples of the other run.
        reached: that of samples of the finished model.
        weight: its lambda; None if the constraint is pointwise.
    """

    constraint: str
    wanted: float
    before: float
    reached: Estimate
    weight: float | None


class MatchingReport(Part):
    """`matching.json`.

    Intervals are over samples, or with prompts over the prompts of the samples.

    Attributes:
        schema_version: version of this format.
        created_by: distribution and version.
        run: folder of the run that was matched, as given.
        step: optimiser steps done.
        samples: samples of the finished model.
        unscored: those that a scorer could not score, which count as outside of the target and in no other figure.
        constraints: the targets.
        acceptance: share of the samples in the target's support: scored, and keeping all pointwise constraints.
        kl_prior: KL of the model from the run before, in nats per sample, the price of the targets.
        kl_target: KL of the target from the model.
        tvd: total variation between target and model.
        z: the normaliser of the target; with prompts, the mean of theirs.
        effective: share of the samples that they are worth as samples of the target.
    """

    schema_version: Literal[1] = 1
    created_by: str
    run: str
    step: Count
    samples: Count
    unscored: Count
    constraints: list[ConstraintReport]
    acceptance: Estimate
    kl_prior: Estimate
    kl_target: float
    tvd: float
    z: float
    effective: float


def matching_path(run: RunFolder) -> Path:
    """The file of the report."""
    return run.path / MATCHING_NAME


def read_matching(run: RunFolder) -> MatchingReport | None:
    """The report of a run that `phf match` made; None if there is none.

    Raises:
        UserError: it is damaged, or of another version.
    """
    return read_stored_report(MatchingReport, matching_path(run), run, phf("match"))
