"""The style of plots: sizes, ticks, and colours for light and dark backgrounds that are safe for colour blindness."""

import io
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.runs.report import Estimate

WIDE, NARROW = 7.6, 4.0  # inches


def ends(estimate: Estimate) -> tuple[float, float]:
    """Both ends of the interval; the value itself if there is none."""
    low = estimate.value if estimate.low is None else min(estimate.low, estimate.value)
    high = estimate.value if estimate.high is None else max(estimate.high, estimate.value)
    return low, high


def tick(value: float, _: int | None = None) -> str:
    """Format a number without superfluous zeros, with a true minus sign."""
    return f"{value:.6g}".replace("-", "−")


def percent_tick(value: float, _: int | None = None) -> str:
    """Format a share in per cent."""
    return f"{100 * value:.4g} %"


def tokens_tick(value: float, _: int | None = None) -> str:
    """Format a number of tokens in thousands, millions or billions."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"


DPI = 200

# On a light and on a dark background. Those of objectives are at least 29 apart in CIELAB for normal sight,
# deuteranopia and protanopia (Machado et al. 2009); less than 10 or so looks alike. Markers and dashes also distinguish
# the objectives.
COLOURS = {
    "ground": ("#ffffff", "#15181d"),
    "ink": ("#1c2026", "#e6e8eb"),
    "faint": ("#616973", "#9aa3ad"),
    "grid": ("#e6e9ed", "#2c323a"),
    "mle": ("#493944", "#e6ebdc"),
    "filtering": ("#d67800", "#f3cd29"),
    "conditional": ("#4690e7", "#9ecdff"),
    "unlikelihood": ("#b97aa4", "#b36e9b"),
    "unlikelihood_soft": ("#403189", "#808cf3"),
    "rwr": ("#52915c", "#4eb474"),
    "token_rwr": ("#000000", "#c0fc90"),
    "awr": ("#a51900", "#d36118"),
    "target": ("#1414e6", "#8728ff"),
    "other": ("#333333", "#dddddd"),
}
_MARKERS = {
    "mle": ("s", 0.95),
    "filtering": ("D", 0.9),
    "conditional": ("o", 1.0),
    "unlikelihood": ("^", 1.1),
    "unlikelihood_soft": ("v", 1.1),
    "rwr": ("P", 1.25),
    "token_rwr": ("p", 1.15),
    "awr": ("X", 1.2),
    "target": ("h", 1.1),
}
# In the order of the objectives above.
_DASHES: tuple[Any, ...] = (
    "-",
    (0, (4, 1.5)),
    (0, (9, 2)),
    (0, (1.2, 1.2)),
    (0, (6, 1.5, 1.2, 1.5)),
    (0, (3, 1.2, 1.2, 1.2, 1.2, 1.2)),
    (0, (7, 1.5, 2.5, 1.5)),
    (0, (1.2, 3)),
    (0, (2.5, 2.5)),
)


@dataclass(frozen=True)
class Look:
    """One way to draw a figure: with the colours for a light background, which a page replaces for a dark one.

    Attributes:
        narrow: for the width of a phone.
    """

    narrow: bool = False

    @property
    def ground(self) -> str:
        """Background colour, the same as that of the page."""
        return COLOURS["ground"][0]

    @property
    def ink(self) -> str:
        """Colour of text."""
        return COLOURS["ink"][0]

    @property
    def faint(self) -> str:
        """Colour of axes and explanatory text."""
        return COLOURS["faint"][0]

    @property
    def grid(self) -> str:
        """Colour of grid lines and bands."""
        return COLOURS["grid"][0]

    def colour(self, objective: str) -> str:
        """Colour of an objective."""
        return COLOURS[objective if objective in _MARKERS else "other"][0]

    def marker(self, objective: str, size: float, *, hollow: bool = False) -> dict[str, Any]:
        """Options of `Axes.plot` for the marker of an objective, with an edge that sets it off from what is below.

        Args:
            objective: name of the objective.
            size: size of a disc, in typographic points; other shapes are scaled to look as large.
            hollow: whether to draw only an outline, for guided samples.
        """
        shape, scale = _MARKERS.get(objective, ("o", 1.0))
        edge = {"markerfacecolor": self.ground, "markeredgecolor": self.colour(objective), "markeredgewidth": 1.6}
        return {
            "marker": shape,
            "markersize": size * scale,
            **(edge if hollow else {"markeredgecolor": self.ground, "markeredgewidth": 0.9}),
            "linestyle": "none",
            "zorder": 3,
        }

    def lines(self, objectives: Sequence[str], hollow: Collection[int] = ()) -> list[dict[str, Any]]:
        """Options of `Axes.plot` for the line of each run, including markers but not `markevery`.

        Colour and marker are those of the objective, as are the dashes of its first run; further runs have others.

        Args:
            objectives: the objective of each run.
            hollow: indices of runs whose markers are outlines.
        """
        names, seen, found = list(_MARKERS), Counter[str](), []
        for place, objective in enumerate(objectives):
            first = names.index(objective) if objective in names else len(names)
            marker = self.marker(objective, 5.0, hollow=place in hollow)
            marker |= {"linestyle": _DASHES[(first + seen[objective]) % len(_DASHES)], "color": self.colour(objective)}
            found.append(marker | {"linewidth": 1.5, "markeredgewidth": 1.1 if place in hollow else 0.6})
            seen[objective] += 1
        return found


@contextmanager
def drawing(look: Look) -> Iterator[None]:
    """Use the Matplotlib settings of a look during the block; those of the process are preserved."""
    settings: dict[str, Any] = {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so figures look alike on every machine
        "font.size": 9.5,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "axes.titlepad": 8,
        "axes.labelsize": 9.5,
        "axes.labelcolor": look.ink,
        "axes.titlecolor": look.ink,
        "axes.edgecolor": look.faint,
        "axes.facecolor": look.ground,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": look.grid,
        "grid.linewidth": 0.8,
        "xtick.color": look.faint,
        "ytick.color": look.faint,
        "xtick.labelcolor": look.ink,
        "ytick.labelcolor": look.ink,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "xtick.major.size": 3,
        "ytick.major.size": 3,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "text.color": look.ink,
        "figure.facecolor": look.ground,
        "savefig.facecolor": look.ground,
        "lines.solid_capstyle": "round",
        "axes.unicode_minus": True,
        "text.parse_math": False,  # names of runs are not TeX
        "svg.hashsalt": "phf",  # the same figure has the same bytes
        "path.simplify_threshold": 0.25,  # in pixels
    }
    # Start from the defaults, not from a `matplotlibrc`, which may come from the working directory.
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(cast(Any, settings))
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, with sizes in inches, that is drawn by Agg whatever backend the process has."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def add_legend(figure: Figure, look: Look) -> None:
    """Add a legend of the first panel's lines below all panels, where it covers nothing; none for a single line."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(
            handles, labels, frameon=False, fontsize=8.5, loc="outside lower left", ncols=2 if look.narrow else 4,
            handlelength=3.4, labelcolor=look.ink,
        )  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A drawn figure.

    Attributes:
        svg: as SVG, for the page.
        png: as PNG, sharp on dense screens; None for a narrow one.
    """

    svg: bytes
    png: bytes | None


def render(figure: Figure, look: Look) -> Drawing:
    """Render a figure: the same bytes for the same figure. It must not be changed afterwards."""
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    if look.narrow:
        return Drawing(svg.getvalue(), None)
    # Computing the layout takes as long as drawing.
    figure.set_layout_engine("none")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    return Drawing(svg.getvalue(), png.getvalue())
