"""What runs reach with the same compute for a kept sample: by plain sampling, best-of-n, rejection or guidance.

Compute is in forward passes of a kept sample, relative to a plain sample: best-of-n draws n samples, rejection as many
as it takes, and guidance reads two rows for a token. Everything is computed from stored samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from training import selection, statistics
from training.comparison.run import LoadedRun
from training.runs.guidance_report import GuidanceReport, read_guidance, read_scale
from training.runs.report import Estimate, SampleFacts, run_fingerprint
from training.runs.tables import GUIDED_NAME, SAMPLES_NAME, SAMPLES_SCHEMA, read_table
from training.statistics import NOT_NEGATIVE, mean_over_seeds

BUDGETS = (1, 2, 4, 16)
_LEAST_KEPT = 8  # for distinct-2 of kept samples


@dataclass(frozen=True)
class Drawn:
    """Stored samples that a run drew in one way; only those with a score.

    Attributes:
        guidance: guidance scale; None for plain sampling.
        ids: token ids of each sample.
        places: int64 [n], the number of each sample.
        scores: float64 [n].
        nats, tokens: float64 [n], log-probability under the reference of the sweep, and of how many tokens; None if it
            was not measured.
        half: whether only the odd samples may be reported, because the even ones have chosen the scale.
    """

    guidance: float | None
    ids: pa.ChunkedArray
    places: NDArray[np.int64]
    scores: NDArray[np.float64]
    nats: NDArray[np.float64] | None = None
    tokens: NDArray[np.float64] | None = None
    half: bool = False

    @property
    def passes(self) -> int:
        """Forward passes for a token."""
        return 1 if self.guidance in (None, 0.0, 1.0) else 2

    def of(self, first: int) -> "Drawn":
        """Every second sample: the even ones for 0, the odd ones for 1."""
        return self.take(np.flatnonzero(self.places % 2 == first))

    def take(self, rows: NDArray[np.int64]) -> "Drawn":
        """Only these samples: int64, rows."""
        nats, tokens = (None if each is None else each[rows] for each in (self.nats, self.tokens))
        return Drawn(self.guidance, self.ids.take(rows), self.places[rows], self.scores[rows], nats, tokens)


@dataclass(frozen=True)
class Means:
    """A way to get a sample to keep.

    Attributes:
        drawn: the samples that it draws from.
        draws: n of best-of-n, 1 for keeping every sample; None for rejection.
        threshold: the highest score that rejection accepts.
    """

    drawn: Drawn
    draws: int | None
    threshold: float

    @property
    def name(self) -> str:
        """What it is called."""
        how = {None: "rejection", 1: ""}.get(self.draws, f"best of {self.draws}")
        guided = "" if self.drawn.guidance is None else f"g = {self.drawn.guidance:g}"
        return ", ".join(part for part in (guided, how) if part) or "plain"

    def on(self, drawn: Drawn) -> "Means":
        """The same with other samples."""
        return Means(drawn, self.draws, self.threshold)

    @cached_property
    def rejection(self) -> selection.Rejection | None:
        """The figures of rejection."""
        return selection.rejection(self.drawn.scores, self.threshold)

    @property
    def compute(self) -> float | None:
        """Forward passes of a kept sample, relative to a plain sample; None if rejection accepts none."""
        if self.draws is not None:
            return float(self.draws * self.drawn.passes)
        found = self.rejection
        return None if found is None or found.draws is None else found.draws.value * self.drawn.passes

    def misalignment(self) -> Estimate | None:
        """Expected misalignment of a kept sample, with its interval; None with too few samples."""
        if self.draws is None:
            return Estimate.of(self.rejection.score) if self.rejection is not None else None
        return Estimate.of(selection.best_of(self.drawn.scores, [self.draws])[0])

    def value(self) -> float | None:
        """The same without an interval, which takes longer."""
        scores = self.drawn.scores
        if self.draws is None:
            accepted = scores[scores <= self.threshold]
            return float(accepted.mean()) if len(accepted) else None
        return float(selection.best_of_curve(scores, scores, self.draws)[-1]) if len(scores) >= self.draws else None

    def perplexity(self) -> float | None:
        """Expected perplexity of a kept sample's token under the reference of the sweep; None if it is unknown."""
        drawn = self.drawn
        if drawn.nats is None or drawn.tokens is None or len(drawn.scores) < (self.draws or 1):
            return None
        if self.draws is None:
            kept = drawn.scores <= self.threshold
            nats, tokens = drawn.nats[kept].sum(), drawn.tokens[kept].sum()
        else:
            nats, tokens = (
                selection.best_of_curve(drawn.scores, each, self.draws)[-1] for each in (drawn.nats, drawn.tokens)
            )
        return statistics.exp_of_nats(-nats / tokens) if tokens else None

    def distinct_2(self, kept: int) -> float | None:
        """Distinct-2 of this number of kept samples, of disjoint groups of draws; None if there are not as many."""
        scores = self.drawn.scores
        if self.draws is None:
            rows = np.flatnonzero(scores <= self.threshold)
        elif (groups := len(scores) // self.draws) == 0:
            return None
        else:
            rows = scores[: groups * self.draws].reshape(groups, -1).argmin(axis=1) + np.arange(groups) * self.draws
        if len(rows) < kept or kept < _LEAST_KEPT:
            return None
        return statistics.distinct(self.drawn.ids.take(rows[:kept]).to_pylist(), 2)


@dataclass(frozen=True)
class Reached:
    """The lowest misalignment that a run reaches within a budget, or the mean over seeds.

    Attributes:
        means: how; seeds may differ.
        compute: forward passes of a kept sample.
        misalignment: of samples that did not take part in choosing the means.
    """

    means: str
    compute: float
    misalignment: Estimate


def reached(ways: Sequence[Drawn], threshold: float, budget: float) -> Reached | None:
    """Choose the best means within a budget; None if none has enough samples.

    Where there is a choice, the even samples choose and the odd ones are reported, because the lowest of several
    measured figures is, on average, below the true one.

    Args:
        ways: of one run, from `stored_samples`.
        threshold: the highest score that rejection accepts.
        budget: compute, at least 1.
    """
    options = [
        Means(drawn, draws, threshold)
        for drawn in ways
        for draws in (int(budget // drawn.passes), *([None] if budget > drawn.passes else []))
        if draws is None or draws >= 1
    ]
    if len(options) == 1:
        return _reached(options[0])
    ranked = []
    for each in options:
        choosing = each.on(each.drawn.of(0))
        value, compute = choosing.value(), choosing.compute
        if value is not None and compute is not None and compute <= budget:
            ranked.append((value, compute, each))
    ranked.sort(key=lambda each: each[:2])
    for _, _, each in ranked:
        if (found := _reached(each.on(each.drawn.of(1)))) is not None:
            return found
    return None


def over_seeds(found: Sequence[Reached]) -> Reached:
    """The mean of what each seed reaches, with an interval over seeds; of one seed, as it is."""
    if len(found) == 1:
        return found[0]
    values = mean_over_seeds([each.misalignment.value for each in found], NOT_NEGATIVE)
    return Reached(
        " or ".join(dict.fromkeys(each.means for each in found)),
        fmean(each.compute for each in found),
        Estimate(value=values.value, low=values.low, high=values.high),
    )


def _reached(means: Means) -> Reached | None:
    misalignment, compute = means.misalignment(), means.compute
    return None if misalignment is None or compute is None else Reached(means.name, compute, misalignment)


def usable_sweep(run: LoadedRun) -> GuidanceReport | None:
    """The guidance sweep of a run, if it is finished and comparable with the run's evaluation; None otherwise.

    Raises:
        UserError: it is damaged.
    """
    sweep, report = read_guidance(run.folder), run.report
    if sweep is None or not sweep.finished or sweep.run != run_fingerprint(run.folder):
        return None
    judged = (sweep.column, sweep.scorer.fingerprint) == (report.column, report.scorer.fingerprint)
    settings = {"temperature", "top_p", "max_new_tokens"}
    alike = sweep.config.model_dump(include=settings) == report.config.model_dump(include=settings)
    return sweep if judged and alike else None


def stored_samples(run: LoadedRun, sweep: GuidanceReport | None) -> list[Drawn]:
    """The samples of a run: plain ones, and those with the recommended guidance or, without a sweep, any guidance.

    Args:
        run: the run.
        sweep: from `usable_sweep`.

    Raises:
        UserError: a table is missing or damaged.
    """

    def table_of(name: str, facts: SampleFacts) -> pa.Table:
        return read_table(run.evaluation / name, SAMPLES_SCHEMA, run.folder, facts.number)

    plain = table_of(SAMPLES_NAME, run.report.samples)
    found = []
    if sweep is not None and sweep.reference is not None and (one := sweep.of(1)) is not None:
        table = read_scale(run.folder, one)
        # Likelihood is stored with the sweep; its plain samples are those of the evaluation, by the same settings.
        plain = table if table["ids"].equals(plain["ids"]) else plain
    found.append(_drawn(plain, None))
    recommended = None if sweep is None or sweep.recommended is None else sweep.of(sweep.recommended.scale)
    if recommended is not None and recommended.scale != 1 and sweep is not None:
        table = read_scale(run.folder, recommended)
        found.append(_drawn(table, recommended.scale, half=True, measured=sweep.reference is not None))
    elif run.report.guided is not None:
        guided = run.report.guided
        found.append(_drawn(table_of(GUIDED_NAME, guided.samples), guided.scale))
    return found


def _drawn(table: pa.Table, guidance: float | None, *, half: bool = False, measured: bool = True) -> Drawn:
    places = np.flatnonzero(table["score"].is_valid().to_numpy())
    table = table.take(places)
    nats = tokens = None
    if measured and "reference_nats" in table.column_names and not table["reference_nats"].null_count:
        nats, tokens = (table[name].to_numpy().astype(float) for name in ("reference_nats", "reference_tokens"))
    return Drawn(guidance, table["ids"], places, table["score"].to_numpy(), nats, tokens, half)
