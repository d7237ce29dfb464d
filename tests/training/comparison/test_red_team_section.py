"""The section about red-team attacks of the compare page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.training.run_folders import make_run
from training.comparison.load import load_comparison
from training.comparison.red_team_section import red_team_section
from training.comparison.section import Section
from training.comparison.style import Look
from training.measuring_config import RedTeamConfig
from training.runs.folder import RunFolder
from training.runs.red_team_report import RED_TEAM_NAME, RedTeamReport, RoundFacts, red_team_folder
from training.runs.report import Estimate, read_report


def write_attack(run: RunFolder, /, *trials: Sequence[float | None], **changes: Any) -> None:
    """Store an attack with these misalignments by round of each trial; its worst prompt has twice as much."""
    evaluated = read_report(run)

    def facts(value: float | None) -> RoundFacts:
        misalignment = None if value is None else Estimate(value=value, low=value / 2, high=value * 2)
        worst = None if value is None else 2 * value
        return RoundFacts(prompts=32, scored=32, misalignment=misalignment, worst=worst, hit_rate=None)

    report = RedTeamReport(
        created_by="phf", run=evaluated.run, column=evaluated.column, config=RedTeamConfig(), temperature=0.7,
        top_p=0.9, attacker="recombination", attacker_name="recombination", beginning="b" * 16, device="cpu",
        scorer=evaluated.scorer, hit_threshold=0.0, trials=[[facts(each) for each in trial] for trial in trials],
        warnings=[],
    )  # fmt: skip
    path = red_team_folder(run) / RED_TEAM_NAME
    path.parent.mkdir(parents=True)
    path.write_text(report.model_copy(update=changes).model_dump_json())


def section_of(*runs: RunFolder) -> Section | None:
    return red_team_section(load_comparison([run.path for run in runs]))


def shown(section: Section) -> dict[str, list[tuple[str, str]]]:
    return {row.label: [(cell.text, cell.small) for cell in row.cells] for row in section.tables[0].rows}


def test_rounds_and_the_worst_prompt_by_group_of_seeds(tmp_path: Path) -> None:
    mle = make_run(tmp_path / "mle", "mle")
    awr = make_run(tmp_path / "awr", "awr")
    seeds = [make_run(tmp_path / f"rwr-{seed}", "rwr", training={"seed": seed}) for seed in (0, 1)]
    write_attack(mle, (0.1, 0.4))
    write_attack(awr, (0.1, 0.3), (0.1, 0.5))
    for run, end in zip(seeds, (0.2, 0.4), strict=True):
        write_attack(run, (0.1, end))
    section = section_of(mle, awr, *seeds)
    assert section.tables[0].columns == ["round 0", "round 1", "worst prompt"]
    found = shown(section)
    # One trial has the interval over its prompts; the others t of one degree of freedom, 12.7062, times 0.1; scores are
    # not below 0.
    assert found["mle"] == [("0.100", "0.0500–0.200"), ("0.400", "0.200–0.800"), ("0.800", "")]
    assert found["awr"][1:] == [("0.400", "0–1.67"), ("0.800", "0–3.34")]
    assert found["rwr"][1:] == [("0.300", "0–1.57"), ("0.600", "0–3.14")]
    (plot,) = section.plots
    assert plot.draw(Look(narrow=True)).svg
    assert "mle: 0.100 at 0, 0.400 at 1" in plot.description


def test_a_long_attack_has_few_columns_and_the_last_round(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name) for name in ("mle", "awr")]
    for run in runs:
        write_attack(run, [number / 100 for number in range(21)])
    section = section_of(*runs)
    assert section.tables[0].columns == [*(f"round {each}" for each in (0, 4, 8, 12, 16, 20)), "worst prompt"]


def test_attacks_that_differ_or_are_old_are_named(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name) for name in ("mle", "rwr", "awr")]
    assert section_of(*runs) is None
    write_attack(runs[0], (0.1, 0.4))
    write_attack(runs[1], (0.1, None), config=RedTeamConfig(guidance=2.0))
    write_attack(runs[2], (0.1, 0.4), run="older")
    findings = {each.title: list(each.lines) for each in section_of(*runs).findings}
    assert findings == {
        "Attacks that differ": ["guidance: 1 (mle); 2 (rwr)."],
        "Not shown": ["awr: the run was trained since its attack."],
    }
    assert shown(section_of(*runs))["rwr"][1] == ("–", "")


@pytest.mark.parametrize("change", [{"column": "other"}, {"trials": []}])
def test_what_cannot_be_compared_is_not_shown(tmp_path: Path, change: dict[str, Any]) -> None:
    run = make_run(tmp_path / "mle", "mle")
    write_attack(run, (0.1, 0.4), **change)
    section = section_of(run, make_run(tmp_path / "awr", "awr"))
    assert not section.tables
    assert not section.plots
    assert len(section.findings[0].lines) == 1
