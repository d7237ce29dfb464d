"""Measure the finished model of `phf match` by samples of its own."""

import numpy as np

from scorers.fingerprint import library_versions
from training import statistics
from training.matching.constraints import Floats
from training.matching.drawing import key_of
from training.matching.session import Session
from training.model.language_model import LanguageModel
from training.runs.facts import MatchingFacts
from training.runs.matching_report import ConstraintReport, MatchingReport
from training.runs.report import Estimate


def measure(session: Session, model: LanguageModel, facts: MatchingFacts, step: int, samples: int) -> MatchingReport:
    """Draw samples of the model, and report what they reach. Called on every rank.

    Args:
        session: the models.
        model: the finished model.
        facts: of the run.
        step: optimiser steps done.
        samples: to draw, over all ranks.
    """
    key = key_of("report", step)
    found = session.sample(model, key, samples, of_model=True)
    figures = session.matcher.measure(found.logs)
    contexts = np.array(session.drawer.contexts.indices(key, 0, samples))
    scored = ~np.isnan(found.features).any(axis=1)
    prompted = len(session.drawer.contexts.every) > 1
    energy = session.energy

    def estimate(values: Floats, rows: Floats, *, is_share: bool) -> Estimate:
        if not len(values):
            return Estimate(value=0.0)
        if prompted:
            _, place = np.unique(rows, return_inverse=True)
            values, is_share = np.bincount(place, values) / np.bincount(place), False
        made = statistics.share(int(values.sum()), len(values)) if is_share else statistics.mean(values)
        return Estimate.of(made) or Estimate(value=float(values.mean()))

    inside = (found.logs.target > -np.inf).astype(np.float64)
    return MatchingReport(
        created_by=f"phf {library_versions('phf')['phf']}",
        run=facts.run,
        step=step,
        samples=samples,
        unscored=int((~scored).sum()),
        constraints=[
            ConstraintReport(
                constraint=str(each),
                wanted=each.moment,
                before=facts.before[number],
                reached=estimate(found.features[scored, number], contexts[scored], is_share=each.threshold is not None),
                weight=None if each.pointwise else energy.lambdas[number],
            )
            for number, each in enumerate(energy.constraints)
        ],
        acceptance=estimate(inside, contexts, is_share=True),
        kl_prior=estimate(found.logs.model - found.logs.prior, contexts, is_share=False),
        kl_target=figures.kl_target,
        tvd=figures.tvd,
        z=figures.z,
        effective=figures.effective,
    )
