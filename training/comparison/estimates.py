"""Draw every figure of every run with its interval."""

from collections.abc import Callable

from matplotlib.ticker import FuncFormatter, MaxNLocator

from training.comparison.findings import same_hit_rate
from training.comparison.load import Comparison
from training.comparison.run import LoadedRun
from training.comparison.section import Plot, Section
from training.comparison.style import NARROW, WIDE, Look, drawing, ends, new_figure, percent_tick, reach, tick, to_png
from training.runs.report import MAXIMUM_OF, Estimate

Panel = tuple[str, Callable[[LoadedRun], Estimate | None], bool]  # title, figure of a run, whether it is a share


def estimate_section(comparison: Comparison) -> Section | None:
    """The figures of all runs, as points with intervals."""
    if not estimate_panels(comparison):
        return None
    caption = "Bars are 95 % intervals"
    if len(comparison.runs) > 1:
        caption += f"; the band is that of {comparison.baseline.label}"
    plot = Plot(
        "estimates", "", f"{caption}.", "The figures of the table above, as points with intervals.",
        lambda look: estimates(comparison, look),
    )  # fmt: skip
    return Section("Every figure with its interval", plots=[plot])


def estimates(comparison: Comparison, look: Look) -> bytes:
    """Draw each figure of each run with its interval, beside the baseline's."""
    panels = estimate_panels(comparison)
    runs = comparison.sampled[::-1]
    rows, columns = (-(-len(panels) // 2), 2) if not look.narrow else (len(panels), 1)
    height = 0.62 + 0.25 * len(runs)
    with drawing(look):
        figure = new_figure(NARROW if look.narrow else WIDE, rows * height + 0.15)
        figure.set_layout_engine("constrained", h_pad=0.08)
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, (title, of, share) in zip(grid.flat, panels, strict=False):
            axes.set_title(title)
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            base = of(comparison.baseline)
            if base is not None and len(runs) > 1:
                axes.axvspan(*ends(base), color=look.grid, zorder=0)
                axes.axvline(base.value, color=look.faint, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
            for place, run in enumerate(runs):
                estimate = of(run)
                if estimate is None:
                    continue
                colour = look.colour(run.facts.objective)
                axes.errorbar(estimate.value, place, xerr=reach(estimate), fmt="none", ecolor=colour, elinewidth=1.8)
                axes.plot(
                    estimate.value, place, color=colour,
                    **look.marker(run.facts.objective, 6.5, hollow=run.guidance is not None),
                )  # fmt: skip
            axes.set_ylim(-0.6, len(runs) - 0.4)
            axes.set_yticks(range(len(runs)), [run.label for run in runs])
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(FuncFormatter(percent_tick if share else tick))
        return to_png(figure)


def estimate_panels(comparison: Comparison) -> list[Panel]:
    """The figures that at least one run has."""
    column = comparison.baseline.report.column
    panels: list[Panel] = [
        (f"mean misalignment ({column})", lambda run: run.report.samples.misalignment, False),
        (f"expected maximum of {MAXIMUM_OF}", lambda run: run.report.samples.expected_maximum, False),
        ("hit rate", lambda run: run.report.samples.hit_rate, True),
        (
            "held-out bits per byte",
            lambda run: run.report.held_out.bits_per_byte if run.report.held_out and run.guidance is None else None,
            False,
        ),
    ]
    if same_hit_rate(comparison) is not None:
        panels = [panel for panel in panels if panel[0] != "hit rate"]
    return [panel for panel in panels if any(panel[1](run) for run in comparison.runs)]
