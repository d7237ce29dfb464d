"""Plots show groups: means over seeds with intervals over them, and single seeds faintly."""

from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from tests.training.run_folders import make_run
from training.comparison.distributions import shares_above
from training.comparison.estimates import estimate_section
from training.comparison.groups import misalignment
from training.comparison.load import Comparison, load_comparison
from training.comparison.metric_lines import group_curve, mean_line, measured
from training.comparison.sections import sections
from training.comparison.style import Look
from training.comparison.trade_off import trade_off_section


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two seeds of mle and conditional, and one of filtering, which costs too much to be better."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        make_run(
            folder / f"{name}-{seed}", name, scale=scale, bits=bits, seed=seed, training={"seed": seed}, samples=64,
            evaluations=True, guided=0.004 if name == "conditional" else None,
        )
        for name, scale, bits, seeds in (
            ("mle", 0.031, 2.05, 2),
            ("filtering", 0.024, 2.4, 1),
            ("conditional", 0.016, 2.06, 2),
        )
        for seed in range(seeds)
    ]  # fmt: skip
    return load_comparison([run.path for run in runs])


def test_the_mean_of_lines_has_a_t_interval_and_ends_where_one_ends() -> None:
    one, other = [(0.0, 1.0, 0.9, 1.1), (4.0, 5.0, 5.0, 5.0)], [(1.0, 4.0, 4.0, 4.0), (3.0, 8.0, 8.0, 8.0)]
    assert mean_line([one]) == one
    # At 1 token the values are 2 and 4, at 3 they are 4 and 8; t of one degree of freedom is 12.7062.
    assert mean_line([one, other]) == [
        pytest.approx((1, 3, 3 - 12.70620, 3 + 12.70620)),
        pytest.approx((3, 6, 6 - 2 * 12.70620, 6 + 2 * 12.70620)),
    ]
    ((tokens, value, *_),) = mean_line([one, [(9.0, 3.0, 3.0, 3.0)]])
    assert (tokens, value) == (4, 4)


def test_a_group_has_the_mean_of_its_seeds_and_each_of_them(comparison: Comparison) -> None:
    mle, filtering = comparison.groups[:2]
    found = group_curve(mle, lambda run: measured(run, "misalignment"))
    assert found is not None
    assert len(found.seeds) == 2
    assert [point[1] for point in found.line] == pytest.approx(
        [fmean(points) for points in zip(*([point[1] for point in line] for line in found.seeds), strict=True)]
    )
    single = group_curve(filtering, lambda run: measured(run, "misalignment"))
    assert single is not None
    assert (single.line, single.seeds) == (measured(filtering.runs[0], "misalignment"), [])
    assert group_curve(mle, lambda run: measured(run, "perplexity")) is None


def test_shares_above_are_means_over_seeds_of_equal_weight() -> None:
    seeds = [np.array([0.1, 0.3, 0.3, 0.0]), np.array([0.2, 0.3])]
    x, above = shares_above(seeds)
    assert x.tolist() == [0, 0.1, 0.2, 0.3]
    assert above.tolist() == pytest.approx([fmean(np.mean(each > score) for each in seeds) for score in x])


def test_each_group_is_drawn_once_with_its_interval_over_seeds(comparison: Comparison) -> None:
    labels = ["mle", "filtering", "conditional", "conditional (g = 2)"]
    section, every = trade_off_section(comparison), estimate_section(comparison)
    assert section is not None
    assert every is not None
    (plot,) = section.plots
    parts = plot.description.split("; ")
    assert [part.partition(":")[0] for part in parts] == labels
    values = [each.value for run in comparison.base.runs if (each := misalignment(run))]
    half = stats.t.ppf(0.975, 1) * np.std(values, ddof=1) / 2**0.5
    assert f"misalignment {fmean(values):.4f} (" in parts[0]
    assert f" to {fmean(values) + half:.3f}"[:-1] in parts[0]
    assert "over seeds, of a single one over samples and documents. Faint marks are single seeds." in plot.caption
    assert plot.caption.endswith("A ring: by the rule of this page, no other is better than conditional (g = 2).")
    assert (
        "over seeds, of a single one over samples or documents; faint marks are single seeds" in every.plots[0].caption
    )
    names = [plot.name for section in sections(comparison) for plot in section.plots]
    for name in ("score-distributions", "training-curves"):
        assert name in names
    curves = next(plot for section in sections(comparison) for plot in section.plots if plot.name == "training-curves")
    assert curves.description.endswith("one curve each for mle, filtering, conditional.")


def test_plots_of_groups_are_drawn_in_any_look(comparison: Comparison) -> None:
    for section in sections(comparison):
        for plot in section.plots:
            assert plot.draw(Look(narrow=True)).svg
