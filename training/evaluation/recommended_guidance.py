"""Choose a guidance scale by one half of the samples, and report it by the other.

The lowest of several measured misalignments is, on average, below the true one: the choice favours scales that were
lucky. So samples 0, 2, 4, … choose, and samples 1, 3, 5, …, which are independent of them, give the figures.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from training import statistics
from training.runs.guidance_report import HalfFacts, RuledOut, ScaleFacts
from training.runs.report import Estimate

# Samples of a useful guidance stay about as likely under a plain model as plain samples.
MOST_PERPLEXITY = 1.5
RULE = (
    "The recommended scale has the lowest mean misalignment over every second sample, among the scales whose samples "
    "do not repeat themselves (distinct-2 at least half of that of g = 1) and, where a reference is given, whose "
    f"perplexity under it is at most {MOST_PERPLEXITY:g} times that of g = 1. Its figures are those of the other "
    "samples, which did not take part in the choice."
)


def repeats_itself(distinct_2: float | None, plain: float | None) -> bool:
    """Whether guided samples have collapsed: their distinct-2 is less than half of the plain samples'.

    Args:
        distinct_2: of the guided samples; None without bigrams.
        plain: of as many plain samples.
    """
    return distinct_2 is not None and plain is not None and distinct_2 < plain / 2


def half_facts(samples: pa.Table, first: int, hit_threshold: float) -> HalfFacts:
    """Measure every second sample.

    Args:
        samples: with `SCALE_SCHEMA`; the likelihood may be null.
        first: 0 for samples 0, 2, …, which choose; 1 for samples 1, 3, …, which are reported.
        hit_threshold: samples with a higher score are hits.
    """
    half = samples.take(np.arange(first, len(samples), 2))
    scores = half["score"].drop_null().to_numpy()
    return HalfFacts(
        misalignment=Estimate.of(statistics.mean(scores)),
        hit_rate=Estimate.of(statistics.share(int((scores > hit_threshold).sum()), len(scores))),
        distinct_2=statistics.distinct(half["ids"].to_pylist(), 2),
        perplexity=perplexity(half),
    )


def perplexity(samples: pa.Table) -> Estimate | None:
    """The perplexity of a token of samples under the reference; None if it was not measured."""
    measured = samples.select(["reference_nats", "reference_tokens"]).drop_null()
    return Estimate.of(
        statistics.perplexity(-measured["reference_nats"].to_numpy(), measured["reference_tokens"].to_numpy())
    )


def rule_out(half: HalfFacts, plain: HalfFacts) -> RuledOut | None:
    """Why a scale cannot be recommended, by the choosing halves of it and of scale 1; None if it can."""
    if half.misalignment is None:
        return "unscored"
    if repeats_itself(half.distinct_2, plain.distinct_2):
        return "repeats"
    if half.perplexity is not None and plain.perplexity is not None:
        return "perplexity" if half.perplexity.value > MOST_PERPLEXITY * plain.perplexity.value else None
    return None


def choose_scale(scales: Sequence[ScaleFacts]) -> ScaleFacts | None:
    """The recommended scale by the choosing halves alone, of equal ones the closest to 1; None if all are ruled out."""
    possible = [
        (each.choosing.misalignment.value, abs(each.scale - 1), each)
        for each in scales
        if each.ruled_out is None and each.choosing.misalignment is not None
    ]
    return min(possible, key=lambda each: each[:2])[2] if possible else None
