"""The section about tampering: intervals, how long a preference lasts, and tests of another state."""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from scipy import stats

from scorers.errors import UserError
from tests.training.run_folders import make_run
from training.comparison.load import load_comparison
from training.comparison.section import Section
from training.comparison.style import Look
from training.comparison.tamper_section import tamper_section
from training.measuring_config import TamperConfig
from training.runs.folder import RunFolder
from training.runs.report import Estimate, read_report
from training.runs.tamper_report import TamperPoint, TamperReport, TextFacts, tamper_path

STEPS = (0, 1, 2, 4)


def write_test(run: RunFolder, /, *trials: Sequence[float], **changes: Any) -> None:
    """Store a tamper test with these misalignments after 0, 1, 2 and 4 steps of each trial."""
    report = read_report(run)
    assert report is not None

    def point(step: int, value: float) -> TamperPoint:
        misalignment = Estimate(value=value, low=value - 0.001, high=value + 0.001)
        return TamperPoint(
            step=step, tokens=256 * step, samples=report.samples.model_copy(update={"misalignment": misalignment})
        )

    test = TamperReport(
        created_by="phf 0.1.0",
        run=report.run,
        column=report.column,
        prompt=[0],
        config=TamperConfig(steps=4, trials=max(1, len(trials))),
        learning_rate=2e-4,
        device="cpu",
        scorer=report.scorer,
        text=TextFacts(documents=40, tokens=9000, misalignment=0.09, fingerprint="f" * 16),
        trials=[[point(step, value) for step, value in zip(STEPS, trial, strict=True)] for trial in trials],
        warnings=[],
    )
    tamper_path(run).write_text(test.model_copy(update=changes).model_dump_json())


def section_of(*runs: RunFolder) -> Section | None:
    return tamper_section(load_comparison([run.path for run in runs]))


def findings(section: Section | None) -> dict[str, list[str]]:
    assert section is not None
    return {each.title: list(each.lines) for each in section.findings}


def t_interval(values: Sequence[float]) -> list[float]:
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return [max(0.0, fmean(values) - half), fmean(values) + half]  # scores are not below 0


def ends_of(section: Section, row: int, column: int) -> list[float]:
    small = section.tables[0].rows[row].cells[column].small
    return [float(each.replace("−", "-")) for each in re.split("–| to ", small)]


def test_intervals_are_over_seeds_then_trials_then_samples(tmp_path: Path) -> None:
    mle = make_run(tmp_path / "mle", "mle")
    rwr = make_run(tmp_path / "rwr", "rwr")
    seeds = [make_run(tmp_path / f"awr{seed}", "awr", training={"seed": seed}) for seed in (0, 1)]
    write_test(mle, (0.05, 0.06, 0.07, 0.08))
    write_test(rwr, (0.02, 0.03, 0.04, 0.05), (0.04, 0.05, 0.06, 0.07))
    write_test(seeds[0], (0.01, 0.02, 0.03, 0.04), (0.03, 0.04, 0.05, 0.06))
    write_test(seeds[1], (0.05, 0.06, 0.07, 0.08), (0.05, 0.06, 0.07, 0.08))
    section = section_of(mle, rwr, *seeds)
    assert section is not None
    (table,) = section.tables
    assert table.columns == ["before", "step 1", "step 2", "step 4"]
    assert {row.label: [cell.text for cell in row.cells] for row in table.rows} == {
        "mle": ["0.0500", "0.0600", "0.0700", "0.0800"],
        "rwr": ["0.0300", "0.0400", "0.0500", "0.0600"],
        "awr": ["0.0350", "0.0450", "0.0550", "0.0650"],
    }
    assert ends_of(section, 0, 0) == [0.049, 0.051]
    assert ends_of(section, 1, 0) == pytest.approx(t_interval([0.02, 0.04]), rel=0.01)
    assert ends_of(section, 2, 0) == pytest.approx(t_interval([0.02, 0.05]), rel=0.01)
    assert "That of the text is 0.0900." in table.note
    assert "awr: 0.0350 at 0, 0.0450 at 1" in section.plots[0].description


@pytest.mark.parametrize(
    ("course", "wording"),
    [
        ((0.01, 0.02, 0.03, 0.04), "conditional stays clearly less misaligned than mle before any finetuning, through "
        "all 4 steps."),
        ((0.01, 0.02, 0.03, 0.06), "conditional stays clearly less misaligned than mle before any finetuning through "
        "step 2, but not at step 4."),
        # Falling again does not count.
        ((0.01, 0.05, 0.01, 0.01), "conditional is clearly less misaligned than mle before any finetuning at first, "
        "but no longer at step 1."),
        ((0.0495, 0.05, 0.01, 0.01), None),
    ],
)  # fmt: skip
def test_how_long_a_preference_lasts(tmp_path: Path, course: Sequence[float], wording: str | None) -> None:
    mle, conditional = make_run(tmp_path / "mle", "mle"), make_run(tmp_path / "conditional", "conditional", guided=0.01)
    write_test(mle, (0.05, 0.06, 0.07, 0.08))
    write_test(conditional, course)
    section = section_of(mle, conditional)
    assert findings(section) == ({} if wording is None else {"How long a preference lasts": [wording]})
    assert section is not None
    assert [row.label for row in section.tables[0].rows] == ["mle", "conditional"]


def test_tests_by_other_settings_are_apart_and_named(tmp_path: Path) -> None:
    mle = make_run(tmp_path / "mle", "mle")
    seeds = [make_run(tmp_path / f"awr{seed}", "awr", training={"seed": seed}) for seed in (0, 1)]
    for run, rate in zip((mle, *seeds), (2e-4, 2e-4, 1e-3), strict=True):
        write_test(run, (0.05, 0.06, 0.07, 0.08), learning_rate=rate)
    section = section_of(mle, *seeds)
    assert section is not None
    assert [row.label for row in section.tables[0].rows] == ["mle", "awr0", "awr1"]
    assert findings(section) == {"Tests that differ": ["learning rate: 0.0002 (mle, awr0); 0.001 (awr1)."]}


def test_tests_of_another_state_are_named_and_not_shown(tmp_path: Path) -> None:
    mle, rwr, awr, other = (make_run(tmp_path / name, name) for name in ("mle", "rwr", "awr", "filtering"))
    assert section_of(mle, rwr) is None
    write_test(rwr, (0.05, 0.06, 0.07, 0.08), run="0" * 16)
    write_test(awr, (0.05, 0.06, 0.07, 0.08), column="style")
    write_test(other)
    reasons = [
        "filtering: no trial of its test is finished.",
        "rwr: the run was trained since its test.",
        "awr: its test was judged by another scorer than this page.",
    ]
    section = section_of(mle, rwr, awr, other)
    assert findings(section) == {"Not shown": reasons}
    assert section is not None
    assert (section.plots, section.tables) == ([], [])
    write_test(mle, (0.05, 0.06, 0.07, 0.08))
    section = section_of(mle, rwr, awr, other)
    assert section is not None
    assert [row.label for row in section.tables[0].rows] == ["mle"]
    assert section.plots[0].draw(Look()).png
    tamper_path(rwr).write_text("{}")
    with pytest.raises(UserError, match=r"tamper\.json is damaged.*phf attack tamper"):
        section_of(mle, rwr)
