"""The section about equal compute: what sampling more, or with guidance, gives instead of another objective."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from training import selection
from training.comparison.differences import difference_ends
from training.comparison.equal_compute import (
    BUDGETS,
    Drawn,
    Means,
    Reached,
    over_seeds,
    reached,
    stored_samples,
    usable_sweep,
)
from training.comparison.groups import Group
from training.comparison.line_panels import Line, draw_lines
from training.comparison.load import Comparison
from training.comparison.rule import Judgement
from training.comparison.section import Cell, Finding, Plot, Row, Section, Table
from training.comparison.wording import listed, shown
from training.evaluation.format_figures import interval, number
from training.runs.report import Estimate
from training.statistics import NOT_NEGATIVE, mean_over_seeds

_SIZES = (1, 2, 4, 8, 16)
_MISALIGNMENT = "mean misalignment of a kept sample"
_WORDS = {2: "twice", 4: "four times", 16: "16 times"}


@dataclass(frozen=True)
class Sampled:
    """A group with its stored samples.

    Attributes:
        group: the group, of plain samples.
        seeds: of each seed its samples, by how they were drawn; the plain ones come first.
        by_budget: what it reaches within each budget, where every seed has enough samples.
    """

    group: Group
    seeds: list[list[Drawn]]
    by_budget: dict[int, Reached]


def compute_section(comparison: Comparison) -> Section | None:
    """Misalignment against compute for every group; None if no sample has a score."""
    plain = [group for group in comparison.groups if group.guidance is None]
    sampled = [each for group in plain if (each := _sampled(group)).by_budget]
    if not sampled:
        return None
    threshold = number(comparison.baseline.report.samples.hit_threshold)
    return Section(
        "At equal compute",
        note="Any model can be sampled more often, and only good samples be kept. Compute counts the forward passes of "
        "a kept sample; a plain sample costs 1. Best of n draws n samples and keeps the one with the lowest score, "
        f"rejection draws until a score is at most {threshold}, and guidance (g) reads every token after two prompts. "
        "What it takes to score samples is not counted.",
        findings=_findings(Judgement(comparison), sampled),
        plots=[_plot(sampled)],
        tables=[_table(sampled)],
    )


def _sampled(group: Group) -> Sampled:
    seeds = [stored_samples(run, usable_sweep(run)) for run in group.runs]
    found = {}
    for budget in BUDGETS:
        each = [
            reached(ways, run.report.samples.hit_threshold, budget) for run, ways in zip(group.runs, seeds, strict=True)
        ]
        known = [one for one in each if one is not None]
        if len(known) == len(each):
            found[budget] = over_seeds(known)
    return Sampled(group, seeds, found)


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
        rows.append(Row(each.group.label, cells, each.group.objective))
    divergences = ", ".join(f"{number(selection.best_of_kl(n), 2)} for n = {n}" for n in BUDGETS if n > 1)
    return Table(
        "The lowest misalignment within a budget",
        "Mean misalignment of a kept sample, with 95 % intervals, and how it is reached. Where there is a choice, "
        "every second sample chooses, for each seed by itself, and the others give the figure. Best of n diverges from "
        f"plain sampling by at most log n − (n − 1)/n nats (KL): {divergences}.",
        [f"compute {budget}" for budget in BUDGETS],
        rows,
    )


def _findings(judgement: Judgement, sampled: Sequence[Sampled]) -> list[Finding]:
    """What the groups reach that the page's rule lets win: sampling does not change what held-out text costs."""
    base = judgement.comparison.base
    judged = [each for each in sampled if any(each.group is group for group in judgement.judged)]
    first = next((each for each in judged if each.group is base), None)
    if first is None:
        return []
    others = [each for each in judged if each is not first]
    allowed = [each for each in others if judgement.expense(each.group, base) == "within"]
    lines = []
    if 4 in first.by_budget:
        lines.append(_against_best_of(first, [each for each in allowed if 2 in each.by_budget]))
    lines += [_lowest(budget, [each for each in (first, *allowed) if budget in each.by_budget]) for budget in (4, 16)]
    costly = [each.group.label for each in others if all(each is not one for one in allowed)]
    if costly:
        lines.append(
            "Not considered, because the rule of this page asks for held-out text that clearly costs little more than "
            f"{base.label}'s: {listed(costly)}."
        )
    return [Finding("Sampling against training", [line for line in lines if line])]


def _against_best_of(base: Sampled, others: Sequence[Sampled]) -> str:
    """The baseline at four times the compute against the best other at twice, with what the intervals allow."""
    first = base.by_budget[4]
    text = _reaches(base.group.label, first)
    if not others:
        plain = base.by_budget.get(1)
        return f"{text}, a plain sample {shown(plain.misalignment)}." if plain else f"{text}."
    best = min(others, key=lambda each: each.by_budget[2].misalignment.value)
    second = best.by_budget[2]
    low, high = difference_ends(second.misalignment, first.misalignment)
    verdict = "These samples do not show which is lower."
    if high < 0 or low > 0:
        verdict = f"{best.group.label if high < 0 else base.group.label} is lower."
    return f"{text}; {_reaches(best.group.label, second)}. {verdict}"


def _lowest(budget: int, sampled: Sequence[Sampled]) -> str:
    if len(sampled) < 2:
        return ""
    best = min(sampled, key=lambda each: each.by_budget[budget].misalignment.value)
    found = best.by_budget[budget]
    tied = [
        each.group.label
        for each in sampled
        if each is not best and difference_ends(each.by_budget[budget].misalignment, found.misalignment)[0] <= 0
    ]
    text = (
        f"With {_WORDS[budget]} the compute of a plain sample, {best.group.label} is lowest ({found.means}): "
        f"{shown(found.misalignment)}."
    )
    if not tied:
        return f"{text} Every other is clearly higher."
    return f"{text} These samples do not distinguish it from {', '.join(tied)}."


def _reaches(label: str, found: Reached) -> str:
    cost = "costs no more than plain sampling"
    if round(found.compute, 1) > 1:
        times = _WORDS.get(round(found.compute)) if found.compute == round(found.compute) else None
        cost = f"costs {times or f'{number(found.compute, 2)} times'} the sampling"
    how = "sampled plainly" if found.means == "plain" else f"with {found.means}"
    return f"{label} {how} {cost} and reaches {shown(found.misalignment)}"


def _plot(sampled: Sequence[Sampled]) -> Plot:
    kept = min(len(ways[0].scores) for each in sampled for ways in each.seeds) // max(_SIZES)
    panels: list[tuple[str, Callable[[Means], float | None]]] = [
        (_MISALIGNMENT, lambda means: means.value()),
        (f"distinct-2 of {kept} kept samples", lambda means: means.distinct_2(kept)),
        ("perplexity under the reference of the sweep", lambda means: means.perplexity()),
    ]
    drawn = [(title, lines) for title, of in panels if (lines := _lines(sampled, of, bars=title == _MISALIGNMENT))]
    several = any(len(each.seeds) > 1 for each in sampled)
    return Plot(
        "equal-compute",
        "Misalignment against compute",
        "Best of 1, 2, 4, 8 and 16 draws; an outline is guided sampling; where a sweep chose its scale, only "
        f"samples that did not take part are shown. Bars are 95 % intervals{', over seeds' if several else ''}"
        f"{' where there are several' if several and any(len(each.seeds) == 1 for each in sampled) else ''}. "
        "Distinct-2 is of equally many kept samples everywhere.",
        "; ".join(f"{each.group.label}: {_described(each)}" for each in sampled),
        lambda look: draw_lines(look, drawn, "forward passes of a kept sample (plain sampling: 1)", doubling=True),
    )


def _described(sampled: Sampled) -> str:
    reached = sampled.by_budget.items()
    return ", ".join(f"{number(found.misalignment.value, 3)} at {budget}" for budget, found in reached)


def _lines(sampled: Sequence[Sampled], of: Callable[[Means], float | None], *, bars: bool) -> list[Line]:
    """A line for the plain samples of each group, and one for guided samples if every seed has some."""
    lines = []
    for each in sampled:
        for place in range(min(map(len, each.seeds))):
            ways = [seed[place].of(1) if seed[place].half else seed[place] for seed in each.seeds]
            scales = dict.fromkeys(f"{way.guidance:g}" for way in ways if way.guidance is not None)
            points = _points(each.group, ways, of, bars=bars)
            if points:
                label = each.group.label + (f", g = {' or '.join(scales)}" if scales else "")
                lines.append(Line(label, each.group.objective, bool(scales), points))
    return lines


def _points(
    group: Group, ways: Sequence[Drawn], of: Callable[[Means], float | None], *, bars: bool
) -> list[tuple[float, Estimate]]:
    """The figure of each n of best-of-n, of several seeds the mean with an interval over them.

    With `bars`, the figure is misalignment, and one seed has the interval over its samples.
    """
    passes = max(way.passes for way in ways)
    points = []
    for n in (n for n in _SIZES if n * passes <= max(_SIZES)):
        means = [Means(way, n, run.report.samples.hit_threshold) for run, way in zip(group.runs, ways, strict=True)]
        if len(means) == 1 and bars:
            estimate = means[0].misalignment()
        else:
            found = [value for each in means if (value := of(each)) is not None]
            estimate = Estimate.of(mean_over_seeds(found, NOT_NEGATIVE)) if len(found) == len(means) else None
        if estimate is not None:
            points.append((float(n * passes), estimate))
    return points
