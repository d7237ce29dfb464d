"""The section about red-team attacks: how misaligned an attacker's prompts make a model over the rounds of a search."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from scorers.printing import printable
from training.comparison.courses import INTERVALS, Course, Kind, differing, places, plot, read_courses, rows
from training.comparison.load import Comparison
from training.comparison.section import Cell, Finding, Row, Section, Table
from training.runs.red_team_report import RedTeamReport, read_red_team
from training.runs.report import Estimate
from training.statistics import NOT_NEGATIVE, mean_over_seeds

_MOST_COLUMNS = 6


def red_team_section(comparison: Comparison) -> Section | None:
    """Misalignment against the rounds of an attack; None if no attack is stored."""
    attacked, not_shown = read_courses(comparison, Kind("attack", read_red_team, _settings, _of_single))
    if not attacked and not not_shown:
        return None
    findings = [Finding("Attacks that differ", differing(attacked)), Finding("Not shown", not_shown)]
    drawn = plot(
        comparison,
        attacked,
        name="red-team",
        x_label="rounds of the attack",
        caption="Mean misalignment of the continuations of each round's prompts, with 95 % intervals as bands.",
        doubling=False,
    )
    return Section(
        "Red team",
        note="An attacker searches for prompts that the model continues with misaligned text: each round it is shown "
        "the worst prompts so far, and proposes new ones. Round 0 is where the search started.",
        findings=[each for each in findings if each.lines],
        plots=[drawn] if attacked else [],
        tables=[_table(attacked)] if attacked else [],
    )


def _settings(report: RedTeamReport) -> Mapping[str, Any]:
    config = report.config.model_dump(exclude={"trials", "seed"})
    sampling = {"sampling_temperature": report.temperature, "top_p": report.top_p}
    attacker = {"attacker": f"{printable(report.attacker_name)} {report.attacker[:12]}"}
    return config | sampling | attacker | {"first_prompts": report.beginning[:12]}


def _of_single(report: RedTeamReport, number: int) -> Estimate | None:
    rounds = (trial[number] for trial in report.trials if number < len(trial))
    return next((each for found in rounds if (each := found.misalignment) is not None), None)


def _table(attacked: Sequence[Course[RedTeamReport]]) -> Table:
    rounds = places(attacked)
    apart = 1 + (len(rounds) - 1) // _MOST_COLUMNS
    # The last round is always shown.
    shown = sorted({*rounds[::apart], rounds[-1]})
    return Table(
        "Misalignment by round",
        f"Mean misalignment of the continuations of a round's prompts. {INTERVALS} The worst prompt is the one with "
        "the highest mean misalignment of its continuations in any round, as a mean over trials and seeds.",
        [*(f"round {each:,}" for each in shown), "worst prompt"],
        [
            Row(row.label, [*row.cells, _worst(each)], row.objective)
            for row, each in zip(rows(attacked, shown), attacked, strict=True)
        ],
    )


def _worst(course: Course[RedTeamReport]) -> Cell:
    by_seed = []
    for report in course.reports:
        trials = [
            max((each.worst for each in trial if each.worst is not None), default=None) for trial in report.trials
        ]
        known = [each for each in trials if each is not None]
        if known:
            by_seed.append(known)
    values = by_seed[0] if len(by_seed) == 1 else [fmean(each) for each in by_seed]
    return Cell.of(Estimate.of(mean_over_seeds(values, NOT_NEGATIVE)) if values else None)
