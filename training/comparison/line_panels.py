"""Draw figures against a number that readers choose, such as compute: panels with a line for each way of sampling."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from training.comparison.style import NARROW, WIDE, Drawing, Look, add_legend, drawing, ends, new_figure, render, tick
from training.runs.report import Estimate


@dataclass(frozen=True)
class Line:
    """A way of sampling a group.

    Attributes:
        label: name in the legend.
        objective: whose colour and marker it has.
        guided: whether markers are outlines.
        points: the number, and the figure with its interval.
    """

    label: str
    objective: str
    guided: bool
    points: list[tuple[float, Estimate]]


def draw_lines(
    look: Look,
    panels: Sequence[tuple[str, Sequence[Line]]],
    x_label: str,
    *,
    doubling: bool,
) -> Drawing:
    """Draw titled panels below each other, on a common horizontal axis; `doubling` makes it logarithmic."""
    with drawing(look):
        figure = new_figure(NARROW if look.narrow else WIDE, 0.6 + (2.6 if look.narrow else 2.9) * len(panels))
        grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        for axes, (title, lines) in zip(grid, panels, strict=True):
            axes.set_title(title)
            hollow = {index for index, line in enumerate(lines) if line.guided}
            styles = look.lines([line.objective for line in lines], hollow)
            for line, style in zip(lines, styles, strict=True):
                x, figures = zip(*line.points, strict=True)
                axes.plot(x, [each.value for each in figures], label=line.label, **style)
                axes.vlines(
                    x, *zip(*map(ends, figures), strict=True), colors=look.colour(line.objective), linewidth=1.2
                )
            if doubling:
                axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator(_ticks(panels)))
            axes.xaxis.set_major_formatter(FuncFormatter(tick))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_locator(MaxNLocator(6))
            axes.yaxis.set_major_formatter(FuncFormatter(tick))
            axes.margins(y=0.08)
            axes.set_ylim(bottom=0)
        add_legend(figure, look)
        grid[-1].set_xlabel(x_label)
        return render(figure, look)


def _ticks(panels: Sequence[tuple[str, Sequence[Line]]]) -> list[float]:
    return sorted({x for _, lines in panels for line in lines for x, _ in line.points})
