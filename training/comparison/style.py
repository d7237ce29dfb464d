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
from PIL import Image

from training.runs.report import Estimate

WIDE, NARROW = 7.6, 4.0  # inches


def ends(estimate: Estimate) -> tuple[float, float]:
    """Both ends of the interval; the value itself if there is none."""
    low = estimate.value if estimate.low is None else min(estimate.low, estimate.value)
    high = estimate.value if estimate.high is None else max(estimate.high, estimate.value)
    return low, high


def reach(estimate: Estimate) -> Any:
    """The lengths of the interval below and above the value, as `Axes.errorbar` takes them."""
    low, high = ends(estimate)
    return [[estimate.value - low], [high - estimate.value]]


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
_COLOURS = 128

# At least 29 apart in CIELAB for normal sight, deuteranopia and protanopia (Machado et al. 2009); less than 10 or so
# looks alike. Markers and dashes also distinguish the objectives.
_LIGHT = {
    "mle": "#493944",
    "filtering": "#d67800",
    "conditional": "#4690e7",
    "unlikelihood": "#b97aa4",
    "unlikelihood_soft": "#403189",
    "rwr": "#52915c",
    "awr": "#a51900",
}
_DARK = {
    "mle": "#e6ebdc",
    "filtering": "#f3cd29",
    "conditional": "#9ecdff",
    "unlikelihood": "#b36e9b",
    "unlikelihood_soft": "#808cf3",
    "rwr": "#4eb474",
    "awr": "#d36118",
}
_MARKERS = {
    "mle": ("s", 0.95),
    "filtering": ("D", 0.9),
    "conditional": ("o", 1.0),
    "unlikelihood": ("^", 1.1),
    "unlikelihood_soft": ("v", 1.1),
    "rwr": ("P", 1.25),
    "awr": ("X", 1.2),
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
)
_OTHER = {"light": "#333333", "dark": "#dddddd"}


@dataclass(frozen=True)
class Look:
    """One way to draw a figure.

    Attributes:
        dark: for a dark background.
        narrow: for the width of a phone.
    """

    dark: bool = False
    narrow: bool = False

    @property
    def ground(self) -> str:
        """Background colour, the same as that of the page."""
        return "#15181d" if self.dark else "#ffffff"

    @property
    def ink(self) -> str:
        """Colour of text."""
        return "#e6e8eb" if self.dark else "#1c2026"

    @property
    def faint(self) -> str:
        """Colour of axes and explanatory text."""
        return "#9aa3ad" if self.dark else "#616973"

    @property
    def grid(self) -> str:
        """Colour of grid lines and bands."""
        return "#2c323a" if self.dark else "#e6e9ed"

    def colour(self, objective: str) -> str:
        """Colour of an objective."""
        return (_DARK if self.dark else _LIGHT).get(objective, _OTHER["dark" if self.dark else "light"])

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


def page_colours(objective: str) -> tuple[str, str]:
    """The colours of an objective on a light and on a dark background."""
    return Look().colour(objective), Look(dark=True).colour(objective)


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


def to_png(figure: Figure) -> bytes:
    """Render a figure as PNG: sharp on dense screens, small, and the same bytes for the same figure."""
    drawn, target = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, metadata={"Software": None})
    # A page holds each figure four times. Figures have few colours, and a palette takes a third of the space.
    palette = Image.open(drawn).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    palette.save(target, format="png", optimize=True, dpi=(DPI, DPI))
    return target.getvalue()
