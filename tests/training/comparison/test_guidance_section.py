"""The section about guidance: sweeps of the seeds of a group together."""

from pathlib import Path

import pytest

from tests.training.comparison.test_equal_compute import write_sweep
from tests.training.run_folders import make_run
from training.comparison.guidance_section import guidance_section
from training.comparison.load import load_comparison
from training.comparison.section import Section


def section_of(folder: Path, *scales: float, factor: float = 0.2, last: float | None = None) -> Section:
    """The section of a group with a sweep of g = 1 and one of these scales for each seed but the last.

    Guidance multiplies misalignment by `factor`, and by `last` in the last sweep.
    """
    runs = [
        make_run(folder / f"conditional-{seed}", "conditional", seed=seed, training={"seed": seed})
        for seed in range(len(scales) + 1)
    ]
    factors = [factor] * len(scales)
    if last is not None:
        factors[-1] = last
    for run, scale, each in zip(runs, scales, factors, strict=False):
        write_sweep(run, scale, each)
    section = guidance_section(load_comparison([run.path for run in runs]))
    assert section is not None
    return section


def test_seeds_are_one_table_and_curve(tmp_path: Path) -> None:
    section = section_of(tmp_path, 3.0, 3.0)
    (table,), (plot,) = section.tables, section.plots
    assert (table.title, [row.label for row in table.rows]) == ("conditional, by guidance scale", ["g = 1", "g = 3"])
    plain, guided = (row.cells[0].order for row in table.rows)
    assert plain is not None
    assert guided == pytest.approx(0.2 * plain)
    assert [row.cells[-1].text for row in table.rows] == ["", "recommended"]
    assert "Means over 2 seeds" in table.note
    assert table.note.endswith("1 of 3 seeds have no sweep.")
    assert (
        f"conditional: misalignment {table.rows[0].cells[0].text} at g = 1, {table.rows[1].cells[0].text} at g = 3"
        == (plot.description)
    )
    (line,) = section.findings[0].lines
    assert line.startswith("Recommended: g = 3 for each of 2 seeds, with a mean misalignment of ")


def test_seeds_that_recommend_other_scales_are_named(tmp_path: Path) -> None:
    section = section_of(tmp_path, 3.0, 2.0)
    (line,) = section.findings[0].lines
    assert line.startswith("Recommended: g = 3 and g = 2 by seed, with ")
    # Only what all seeds have can be averaged.
    assert [row.label for row in section.tables[0].rows] == ["g = 1"]


def test_a_gain_that_differs_between_seeds_is_not_clear(tmp_path: Path) -> None:
    (line,) = section_of(tmp_path, 3.0, 3.0, factor=1.0).findings[0].lines
    assert line.endswith("without guidance; this is no clear difference.")


def test_an_interval_over_seeds_ends_at_what_a_figure_can_be(tmp_path: Path) -> None:
    (_, guided) = section_of(tmp_path, 3.0, 3.0, factor=0.1, last=0.9).tables[0].rows
    # A t interval of two seeds so far apart would begin below 0.
    assert guided.cells[0].small.startswith("0–")
