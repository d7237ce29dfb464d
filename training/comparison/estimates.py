"""Draw every figure of every run with its interval."""

from matplotlib.ticker import FuncFormatter, MaxNLocator

from training.comparison.findings import same_hit_rate
from training.comparison.groups import Figure, bits_per_byte, expected_maximum, hit_rate, intervals_over, misalignment
from training.comparison.load import Comparison
from training.comparison.section import Plot, Section
from training.comparison.style import NARROW, WIDE, Drawing, Look, drawing, ends, new_figure, percent_tick, render, tick
from training.runs.report import MAXIMUM_OF

Panel = tuple[str, Figure, bool]  # title, figure of a run, whether it is a share


def estimate_section(comparison: Comparison) -> Section | None:
    """The figures of all groups, as points with intervals."""
    if not estimate_panels(comparison):
        return None
    groups = comparison.groups
    caption = f"Bars are 95 % intervals {intervals_over(groups, 'samples or documents')}"
    if any(len(group.runs) > 1 for group in groups):
        caption += "; faint marks are single seeds"
    if len(groups) > 1:
        caption += f"; the band is that of {comparison.base.label}"
    plot = Plot(
        "estimates", "", f"{caption}.", "The figures of the table above, as points with intervals.",
        lambda look: estimates(comparison, look),
    )  # fmt: skip
    return Section("Every figure with its interval", plots=[plot])


def estimates(comparison: Comparison, look: Look) -> Drawing:
    """Draw each figure of each group with its interval, beside the baseline's."""
    panels = estimate_panels(comparison)
    groups = comparison.groups[::-1]
    rows, columns = (-(-len(panels) // 2), 2) if not look.narrow else (len(panels), 1)
    height = 0.62 + 0.25 * len(groups)
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
            base = comparison.base.figure(of)
            if base is not None and len(groups) > 1:
                axes.axvspan(*ends(base), color=look.grid, zorder=0)
                axes.axvline(base.value, color=look.faint, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
            for place, group in enumerate(groups):
                estimate = group.figure(of)
                if estimate is None:
                    continue
                colour, hollow = look.colour(group.objective), group.guidance is not None
                seeds = [each.value for run in group.runs if (each := of(run))] if len(group.runs) > 1 else []
                faint = look.marker(group.objective, 4) | {"zorder": 2}
                axes.plot(seeds, [place - 0.28] * len(seeds), color=colour, alpha=0.5, **faint)
                axes.hlines(place, *ends(estimate), colors=colour, linewidth=1.8)
                axes.plot(
                    estimate.value, place, color=colour,
                    **look.marker(group.objective, 6.5, hollow=hollow),
                )  # fmt: skip
            axes.set_ylim(-0.6, len(groups) - 0.4)
            axes.set_yticks(range(len(groups)), [group.label for group in groups])
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(FuncFormatter(percent_tick if share else tick))
        return render(figure, look)


def estimate_panels(comparison: Comparison) -> list[Panel]:
    """The figures that at least one run has."""
    column = comparison.baseline.report.column
    panels: list[Panel] = [
        (f"mean misalignment ({column})", misalignment, False),
        (f"expected maximum of {MAXIMUM_OF}", expected_maximum, False),
        ("hit rate", hit_rate, True),
        (
            "held-out bits per byte",
            # Guidance does not change it.
            lambda run: bits_per_byte(run) if run.guidance is None else None,
            False,
        ),
    ]
    if same_hit_rate(comparison) is not None:
        panels = [panel for panel in panels if panel[0] != "hit rate"]
    return [panel for panel in panels if any(group.figure(panel[1]) for group in comparison.groups)]
