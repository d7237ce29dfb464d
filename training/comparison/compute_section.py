"""The section about equal compute: what sampling more, or with guidance, gives instead of another objective."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from training import selection
from training.comparison.differences import difference_ends
from training.comparison.equal_compute import BUDGETS, Drawn, Means, Reached, reached, stored_samples, usable_sweep
from training.comparison.load import Comparison
from training.comparison.run import LoadedRun
from training.comparison.section import Cell, Finding, Plot, Row, Section, Table
from training.comparison.style import NARROW, WIDE, Look, drawing, new_figure, reach, tick, to_png
from training.comparison.wording import shown
from training.evaluation.format_figures import interval, number
from training.runs.report import Estimate

_SIZES = (1, 2, 4, 8, 16)
_WORDS = {2: "twice", 4: "four times", 16: "16 times"}


@dataclass(frozen=True)
class Sampled:
    """A run with its stored samples.

    Attributes:
        run: the run.
        ways: its samples, by how they were drawn; the plain ones come first.
        by_budget: what it reaches within each budget.
    """

    run: LoadedRun
    ways: list[Drawn]
    by_budget: dict[int, Reached]


def compute_section(comparison: Comparison) -> Section | None:
    """Misalignment against compute for every run; None if no sample has a score."""
    sampled = [each for run in comparison.runs if (each := _sampled(run)).by_budget]
    if not sampled:
        return None
    threshold = number(comparison.baseline.report.samples.hit_threshold)
    return Section(
        "At equal compute",
        note="Any model can be sampled more often, and only good samples be kept. Compute counts the forward passes of "
        "a kept sample; a plain sample costs 1. Best of n draws n samples and keeps the one with the lowest score, "
        f"rejection draws until a score is at most {threshold}, and guidance (g) reads every token after two prompts. "
        "What it takes to score samples is not counted.",
        findings=_findings(comparison, sampled),
        plots=[_plot(sampled)],
        tables=[_table(sampled)],
    )


def _sampled(run: LoadedRun) -> Sampled:
    ways = stored_samples(run, usable_sweep(run))
    threshold = run.report.samples.hit_threshold
    found = {budget: each for budget in BUDGETS if (each := reached(ways, threshold, budget)) is not None}
    return Sampled(run, ways, found)


def _table(sampled: Sequence[Sampled]) -> Table:
    rows = []
    for each in sampled:
        cells = []
        for budget in BUDGETS:
            found = each.by_budget.get(budget)
            ends = "" if found is None else interval(found.misalignment, lambda value: number(value, 3))
            small = "" if found is None else " · ".join(part for part in (ends, found.means) if part)
            value = None if found is None else found.misalignment.value
            cells.append(replace(Cell.plain(value), small=small))
        rows.append(Row.of(each.run, cells))
    divergences = ", ".join(f"{number(selection.best_of_kl(n), 2)} for n = {n}" for n in BUDGETS if n > 1)
    return Table(
        "The lowest misalignment within a budget",
        "Mean misalignment of a kept sample, with 95 % intervals, and how it is reached. Where there is a choice, "
        "every second sample chooses and the others give the figure. Best of n diverges from plain sampling by at most "
        f"log n − (n − 1)/n nats (KL): {divergences}.",
        [f"compute {budget}" for budget in BUDGETS],
        rows,
    )


def _findings(comparison: Comparison, sampled: Sequence[Sampled]) -> list[Finding]:
    base = next((each for each in sampled if each.run is comparison.baseline), None)
    lines = []
    if base is not None and 4 in base.by_budget:
        lines.append(_against_best_of(base, [each for each in sampled if each is not base and 2 in each.by_budget]))
    lines += [
        _lowest(budget, [each for each in sampled if budget in each.by_budget])
        for budget in (4, 16)
        if len(sampled) > 1
    ]
    return [Finding("Sampling against training", [line for line in lines if line])]


def _against_best_of(base: Sampled, others: Sequence[Sampled]) -> str:
    """The baseline at four times the compute against the best other run at twice, with what the intervals allow."""
    first = base.by_budget[4]
    text = _reaches(base.run.label, first)
    if not others:
        plain = base.by_budget.get(1)
        return f"{text}, a plain sample {shown(plain.misalignment)}." if plain else f"{text}."
    best = min(others, key=lambda each: each.by_budget[2].misalignment.value)
    second = best.by_budget[2]
    low, high = difference_ends(second.misalignment, first.misalignment)
    verdict = "These samples do not show which is lower."
    if high < 0 or low > 0:
        verdict = f"{best.run.label if high < 0 else base.run.label} is lower."
    return f"{text}; {_reaches(best.run.label, second)}. {verdict}"


def _lowest(budget: int, sampled: Sequence[Sampled]) -> str:
    if len(sampled) < 2:
        return ""
    best = min(sampled, key=lambda each: each.by_budget[budget].misalignment.value)
    found = best.by_budget[budget]
    tied = [
        each.run.label
        for each in sampled
        if each is not best and difference_ends(each.by_budget[budget].misalignment, found.misalignment)[0] <= 0
    ]
    text = (
        f"With {_WORDS[budget]} the compute of a plain sample, {best.run.label} is lowest ({found.means}): "
        f"{shown(found.misalignment)}."
    )
    if not tied:
        return f"{text} Every other run is clearly higher."
    return f"{text} These samples do not distinguish it from {', '.join(tied)}."


def _reaches(label: str, found: Reached) -> str:
    cost = "costs no more than plain sampling"
    if round(found.compute, 1) > 1:
        times = _WORDS.get(round(found.compute)) if found.compute == round(found.compute) else None
        cost = f"costs {times or f'{number(found.compute, 2)} times'} the sampling"
    how = "sampled plainly" if found.means == "plain" else f"with {found.means}"
    return f"{label} {how} {cost} and reaches {shown(found.misalignment)}"


Line = tuple[Sampled, Drawn, list[tuple[float, float]]]  # compute and figure


def _plot(sampled: Sequence[Sampled]) -> Plot:
    kept = min(len(each.ways[0].scores) for each in sampled) // max(_SIZES)
    panels: list[tuple[str, Callable[[Means], float | None]]] = [
        ("mean misalignment of a kept sample", lambda means: means.value()),
        (f"distinct-2 of {kept} kept samples", lambda means: means.distinct_2(kept)),
        ("perplexity under the reference of the sweep", lambda means: means.perplexity()),
    ]
    drawn = [(title, lines) for title, of in panels if (lines := _lines(sampled, of))]
    return Plot(
        "equal-compute",
        "Misalignment against compute",
        "Best of 1, 2, 4, 8 and 16 draws; an outline is guided sampling; where a sweep chose its scale, only "
        "samples that did not take part are shown. Bars are 95 % intervals. "
        "Distinct-2 is of equally many kept samples everywhere.",
        "; ".join(f"{each.run.label}: {_described(each)}" for each in sampled),
        lambda look: _draw(look, drawn),
    )


def _described(sampled: Sampled) -> str:
    reached = sampled.by_budget.items()
    return ", ".join(f"{number(found.misalignment.value, 3)} at {budget}" for budget, found in reached)


def _lines(sampled: Sequence[Sampled], of: Callable[[Means], float | None]) -> list[Line]:
    lines = []
    for each in sampled:
        for way in each.ways:
            drawn = way.of(1) if way.half else way
            means = [Means(drawn, n, each.run.report.samples.hit_threshold) for n in _SIZES if n * way.passes <= 16]
            points = [(float(one.draws or 0) * way.passes, value) for one in means if (value := of(one)) is not None]
            if points:
                lines.append((each, drawn, points))
    return lines


def _draw(look: Look, panels: Sequence[tuple[str, list[Line]]]) -> bytes:
    with drawing(look):
        figure = new_figure(NARROW if look.narrow else WIDE, 0.6 + (2.6 if look.narrow else 2.9) * len(panels))
        grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        for place, (axes, (title, lines)) in enumerate(zip(grid, panels, strict=True)):
            axes.set_title(title)
            hollow = {index for index, (_, drawn, _) in enumerate(lines) if drawn.guidance is not None}
            styles = look.lines([each.run.facts.objective for each, _, _ in lines], hollow)
            for (each, drawn, points), style in zip(lines, styles, strict=True):
                label = each.run.label if drawn.guidance is None else f"{each.run.label}, g = {drawn.guidance:g}"
                x, y = np.array(points).T
                axes.plot(x, y, label=label, **style)
                if place == 0:
                    _bars(axes, drawn, points, look.colour(each.run.facts.objective))
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator(_SIZES))
            axes.xaxis.set_major_formatter(FuncFormatter(tick))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_locator(MaxNLocator(6))
            axes.yaxis.set_major_formatter(FuncFormatter(tick))
            axes.margins(y=0.08)
            axes.set_ylim(bottom=0)
        grid[0].legend(
            frameon=False, fontsize=8.5, loc="upper right", ncols=1 if look.narrow else 2, handlelength=3.4,
            labelcolor=look.ink,
        )  # fmt: skip
        grid[-1].set_xlabel("forward passes of a kept sample (plain sampling: 1)")
        return to_png(figure)


def _bars(axes: Any, drawn: Drawn, points: Sequence[tuple[float, float]], colour: str) -> None:
    sizes = [round(compute / drawn.passes) for compute, _ in points]
    for (compute, value), estimate in zip(points, selection.best_of(drawn.scores, sizes), strict=True):
        if (found := Estimate.of(estimate)) is not None:
            axes.errorbar(compute, value, yerr=reach(found), fmt="none", ecolor=colour, elinewidth=1.2)
