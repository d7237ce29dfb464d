"""The section about guidance: the figures of each scale of the sweeps, and the recommended ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.comparison.equal_compute import usable_sweep
from training.comparison.groups import Group, over_seeds
from training.comparison.line_panels import Line, draw_lines
from training.comparison.load import Comparison
from training.comparison.section import Cell, Finding, Plot, Row, Section, Table
from training.comparison.wording import listed, shown
from training.evaluation.format_figures import number
from training.evaluation.guidance_wording import WHY_NOT, recommendation
from training.evaluation.recommended_guidance import RULE
from training.runs.guidance_report import GuidanceReport, HalfFacts, ScaleFacts
from training.runs.report import Estimate
from training.statistics import NOT_NEGATIVE, SHARE, Bounds, mean_over_seeds


@dataclass(frozen=True)
class Swept:
    """The sweeps of a group.

    Attributes:
        group: the group.
        sweeps: one per seed that has one.
    """

    group: Group
    sweeps: list[GuidanceReport]

    @property
    def scales(self) -> list[float]:
        """The scales that all sweeps have, in ascending order; 1 is among them."""
        return sorted(set.intersection(*({each.scale for each in sweep.scales} for sweep in self.sweeps)))

    def at(self, scale: float) -> list[ScaleFacts]:
        """The facts of one of these scales, by seed."""
        return [each for sweep in self.sweeps for each in sweep.scales if each.scale == scale]

    def figure(
        self, scale: float, of: Callable[[ScaleFacts], Estimate | None], bounds: Bounds = NOT_NEGATIVE
    ) -> Estimate | None:
        """The mean of a figure of a scale over seeds; None if a seed lacks it."""
        return over_seeds([of(each) for each in self.at(scale)], bounds)


def guidance_section(comparison: Comparison) -> Section | None:
    """The guidance sweeps of the runs; None without one."""
    plain = [group for group in comparison.groups if group.guidance is None]
    found = [(group, [sweep for run in group.runs if (sweep := usable_sweep(run)) is not None]) for group in plain]
    swept = [Swept(group, sweeps) for group, sweeps in found if sweeps]
    if not swept:
        return None
    return Section(
        "Guidance",
        note="Guidance samples a conditional model away from what it writes after its worst tag: g = 1 is plain "
        f"sampling, larger values steer harder, and too large ones make text repeat itself. {RULE}",
        findings=[Finding(each.group.label, [_recommendation(each)]) for each in swept],
        plots=[_plot(swept)],
        tables=[_table(each) for each in swept],
    )


def _recommendation(swept: Swept) -> str:
    """The recommended scales, and what they reach on the samples that did not take part in the choice."""
    sweeps = swept.sweeps
    if len(sweeps) == 1:
        return recommendation(sweeps[0])
    chosen = [facts for sweep in sweeps if sweep.recommended and (facts := sweep.of(sweep.recommended.scale))]
    if len(chosen) < len(sweeps):
        return "No scale is recommended for each seed: some have none with a score."
    scales = [f"g = {each.scale:g}" for each in chosen]
    which = f"{scales[0]} for each of {len(scales)} seeds" if len(set(scales)) == 1 else f"{listed(scales)} by seed"
    if all(each.scale == 1 for each in chosen):
        return f"Recommended: no guidance ({which})."
    before = [facts.reporting for sweep in sweeps if (facts := sweep.of(1))]
    after = [each.reporting for each in chosen]
    means = [over_seeds([each.misalignment for each in halves], NOT_NEGATIVE) for halves in (after, before)]
    text = f"Recommended: {which}, with a mean misalignment of {shown(means[0])} against {shown(means[1])} without"
    lower = _differences(after, before)
    high = mean_over_seeds(lower).high if lower else None
    return f"{text} guidance{'' if high is not None and high < 0 else '; this is no clear difference'}."


def _differences(after: Sequence[HalfFacts], before: Sequence[HalfFacts]) -> list[float]:
    """The change of each seed: what differs between seeds cancels out."""
    return [
        one.misalignment.value - other.misalignment.value
        for one, other in zip(after, before, strict=True)
        if one.misalignment is not None and other.misalignment is not None
    ]


def _plot(swept: Sequence[Swept]) -> Plot:
    panels: list[tuple[str, Callable[[ScaleFacts], Estimate | None]]] = [
        ("mean misalignment of samples", lambda facts: facts.samples.misalignment),
        ("distinct-2 of the samples", _distinct_2),
        ("perplexity under the reference", lambda facts: facts.perplexity),
    ]
    drawn = [(title, lines) for title, of in panels if (lines := _lines(swept, of))]
    several = any(len(each.sweeps) > 1 for each in swept)
    return Plot(
        "guidance",
        "",
        f"Against the guidance scale g, with 95 % intervals{' over seeds' if several else ''}. Steering is worth it as "
        "long as misalignment falls while text stays as varied and as likely as without.",
        "; ".join(
            f"{each.group.label}: misalignment "
            + ", ".join(f"{number(figure.value, 3)} at g = {scale:g}" for scale, figure in _misalignment(each))
            for each in swept
        ),
        lambda look: draw_lines(look, drawn, "guidance scale g (plain sampling: 1)", doubling=False),
    )


def _lines(swept: Sequence[Swept], of: Callable[[ScaleFacts], Estimate | None]) -> list[Line]:
    lines = []
    for each in swept:
        points = [(scale, figure) for scale in each.scales if (figure := each.figure(scale, of)) is not None]
        if points:
            lines.append(Line(each.group.label, each.group.objective, guided=False, points=points))
    return lines


def _misalignment(swept: Swept) -> list[tuple[float, Estimate]]:
    return [point for line in _lines([swept], lambda facts: facts.samples.misalignment) for point in line.points]


def _distinct_2(facts: ScaleFacts) -> Estimate | None:
    return None if facts.samples.distinct_2 is None else Estimate(value=facts.samples.distinct_2)


def _table(swept: Swept) -> Table:
    sweeps, group = swept.sweeps, swept.group
    note = f"{sweeps[0].config.num_samples:,} samples a scale, drawn with the same seed, with 95 % intervals."
    if len(sweeps) > 1:
        note = f"Means over {len(sweeps)} seeds, with 95 % intervals over them: " + note.replace(
            ", with 95 % intervals", ""
        )
    references = dict.fromkeys(f"{each.name} ({each.objective})" for sweep in sweeps if (each := sweep.reference))
    if references:
        note += f" Perplexity of a token of the samples under {listed(list(references), 'or')}."
    missing = len(group.runs) - len(sweeps)
    if missing:
        note += f" {missing} of {len(group.runs)} seeds have no sweep."
    columns = ["misalignment, mean", "hit rate", "distinct-2", "length in tokens"]
    return Table(
        f"{group.label}, by guidance scale",
        note,
        [*columns, *(["perplexity"] if references else []), "note"],
        [
            Row(
                f"g = {scale:g}",
                _cells(swept, scale, perplexity=bool(references)),
                group.objective,
                guided=scale != 1,
                order=scale,
            )
            for scale in swept.scales
        ],
        heading="scale",
    )


def _cells(swept: Swept, scale: float, *, perplexity: bool) -> list[Cell]:
    return [
        Cell.of(swept.figure(scale, lambda facts: facts.samples.misalignment)),
        Cell.of(swept.figure(scale, lambda facts: facts.samples.hit_rate, SHARE), share=True),
        Cell.of(swept.figure(scale, _distinct_2, SHARE)),
        Cell.of(swept.figure(scale, lambda facts: facts.samples.tokens)),
        *([Cell.of(swept.figure(scale, lambda facts: facts.perplexity))] if perplexity else []),
        Cell(_note(swept, scale)),
    ]


def _note(swept: Swept, scale: float) -> str:
    """Whether the scale is recommended or ruled out, and for how many of several seeds."""
    notes = []
    for sweep, facts in zip(swept.sweeps, swept.at(scale), strict=True):
        if sweep.recommended is not None and sweep.recommended.scale == scale:
            notes.append("recommended")
        elif facts.ruled_out:
            notes.append(WHY_NOT[facts.ruled_out])
    every = len(swept.sweeps)
    counts = {note: notes.count(note) for note in dict.fromkeys(notes)}
    return ", ".join(note if count == every else f"{note} ({count} of {every})" for note, count in counts.items())
