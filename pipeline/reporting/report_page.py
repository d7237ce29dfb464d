"""Render the report of a dataset: one self-contained page with a threshold to move for every score column."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.dataset import LabelledDataset
from pipeline.reporting.found_types import FoundType
from pipeline.reporting.human_labels import Calibration
from pipeline.reporting.threshold_shares import ColumnShares, GroupShares
from scorers.amounts import format_count
from scorers.content_security import content_policy
from scorers.fingerprint import library_versions
from scorers.printing import printable
from scorers.shell import phf

_MARK = '<meta name="format" content="phf report 1">'
_WIDTH, _HEIGHT = 640, 240  # of the drawing area of a curve, in its own units
_LOWEST_SHARE = 1e-4
_SQUARE = 240


def render_report(
    dataset: LabelledDataset,
    columns: Sequence[ColumnShares],
    calibrations: Mapping[str, Calibration],
    by: str | None,
    types: Mapping[str, Sequence[FoundType]],
) -> str:
    """Render the page; it holds counts, names of groups and figures, and no text of the corpus.

    Args:
        dataset: the dataset.
        columns: the shares of each column.
        calibrations: by column.
        by: what the groups are; None for none.
        types: by column that has spans, what was found.
    """
    script, style = (files(__package__).joinpath(name).read_text() for name in ("report.js", "report.css"))
    environment = Environment(
        loader=PackageLoader(__package__, "."),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": format_percent, "count": "{:,}".format, "of": format_count}
    views = [
        _view(dataset.uri, column, calibrations.get(column.column)) | {"types": types.get(column.column, [])}
        for column in columns
    ]
    page: str = environment.get_template("report.html.j2").render(
        mark=Markup(_MARK),  # noqa: S704
        created_by=f"phf {library_versions('phf')['phf']}",
        dataset=dataset,
        uri=printable(dataset.uri),
        by=by,
        views=views,
        policy=content_policy(style, script),
        style=Markup(style),  # noqa: S704 - our own files
        script=Markup(script),  # noqa: S704
        data=Markup(_as_json([each["data"] for each in views])),  # noqa: S704 - `<` is escaped in it
        width=_WIDTH,
        height=_HEIGHT,
        square=_SQUARE,
    )
    return page


def is_report(content: bytes) -> bool:
    """Whether a file holds an earlier report, which may be replaced."""
    return _MARK.encode() in content


def to_dict(
    dataset: LabelledDataset,
    columns: Sequence[ColumnShares],
    calibrations: Mapping[str, Calibration],
    types: Mapping[str, Sequence[FoundType]],
) -> dict[str, Any]:
    """The figures of the report as JSON values."""
    return {
        "dataset": dataset.uri,
        "generation": dataset.manifest.generation,
        "columns": [
            {
                "column": each.column,
                "kind": each.kind,
                "committed_threshold": each.committed.value,
                "documents_null": each.documents_null,
                "thresholds": [float(threshold) for threshold in each.thresholds],
                "all": _counts(each.whole),
                "groups": [_counts(group) for group in each.groups],
                "calibration": asdict(calibrations[each.column]) if each.column in calibrations else None,
                "types": [asdict(found) for found in types[each.column]] if each.column in types else None,
            }
            for each in columns
        ],
    }


def _view(uri: str, column: ColumnShares, calibration: Calibration | None) -> dict[str, Any]:
    """What the template and the script need of a column."""
    axis = _Axis.of(column.thresholds)
    places = [axis.place(float(each)) for each in column.thresholds]
    texts = [format_threshold(each) for each in column.thresholds]
    return {
        "column": column,
        "calibration": calibration,
        "texts": texts,
        "command": _retag(uri, column.column, texts[column.committed_index]),
        "ticks": axis.ticks(),
        "shares": [share for share in (1, 0.1, 0.01, 0.001) if share >= _LOWEST_SHARE],
        "curves": [_curve(group, places) for group in (column.whole, *column.groups)],
        "kept": _path(places, _share_above(column.whole.documents)),
        "stops": _stops(column),
        "rates": _rates(calibration) if calibration else None,
        "data": {
            "thresholds": texts,
            "x": [round(place, 1) for place in places],
            "committed": column.committed_index,
            "commands": [_retag(uri, column.column, text) for text in texts],
            "groups": [
                [each.tolist() for each in (g.sentences, g.characters, g.documents, g.document_characters)]
                for g in (column.whole, *column.groups)
            ],
            "calibration": _calibration_data(calibration) if calibration else None,
        },
    }


def _retag(uri: str, column: str, threshold: str) -> str:
    return phf("retag", uri, "--threshold", f"{column}={threshold}")


def _counts(group: GroupShares) -> dict[str, Any]:
    return {
        name: value if isinstance(value, str) else [int(each) for each in value]
        for name, value in asdict(group).items()
    }


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis from `low` to `high`, with 0 a step to the left of `low`."""

    low: float
    high: float
    step: float

    @classmethod
    def of(cls, thresholds: NDArray[np.float32]) -> "_Axis":
        """The axis of thresholds, ascending."""
        positive = thresholds[thresholds > 0].astype(np.float64)
        if not len(positive):
            return cls(1.0, 1.0, 0.0)
        # A few tiny scores must not take most of the axis.
        low, high = max(float(positive[0]), float(positive[-1]) * 1e-6), float(positive[-1])
        return cls(low, high, 24.0 if len(positive) < len(thresholds) else 0.0)

    def place(self, value: float) -> float:
        """The place of a threshold from the left, in the units of the drawing area."""
        if value <= 0:
            return 0.0
        span = max(math.log10(self.high / self.low), 1e-9)
        return self.step + (_WIDTH - self.step) * min(1.0, max(0.0, math.log10(value / self.low) / span))

    def ticks(self) -> list[tuple[float, str]]:
        """Decades, and 0, with their places; the highest threshold if no decade is between."""
        decades = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
        values = [10.0**exponent for exponent in decades] or [self.high]
        ticks = [(self.place(value), f"{value:.3g}") for value in values]
        return [(0.0, "0"), *(each for each in ticks if each[0] > 40)] if self.step else ticks


def _share_above(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = 1 - counts / max(1, counts[-1])
    return shares


def _height_of(share: float) -> float:
    """Logarithmic from 100 % at the top to 0.01 % at the bottom."""
    return _HEIGHT * min(1.0, math.log10(max(share, _LOWEST_SHARE)) / math.log10(_LOWEST_SHARE))


def _path(places: Sequence[float], shares: NDArray[np.float64]) -> str:
    """The steps of a curve as an SVG path: a share holds from its threshold to the next."""
    points = [f"{place:.1f} {_height_of(share):.1f}" for place, share in zip(places, shares, strict=True)]
    steps = [
        f"H{place:.1f}V{_height_of(share):.1f}" for place, share in zip(places[1:], shares[1:].tolist(), strict=True)
    ]
    return f"M{points[0]}{''.join(steps)}"


def _curve(group: GroupShares, places: Sequence[float]) -> dict[str, Any]:
    return {"name": group.name, "path": _path(places, _share_above(group.sentences)), "group": group}


def _stops(column: ColumnShares) -> list[int]:
    """Indices of a few thresholds for the table of a page without a script, the committed one among them."""
    shares = column.whole.sentences / max(1, column.whole.sentences[-1])
    wanted = np.searchsorted(shares, [0.5, 0.75, 0.9, 0.95, 0.99, 0.999])
    return sorted({*np.minimum(wanted, len(shares) - 1).tolist(), column.committed_index})


def _rates(calibration: Calibration) -> dict[str, str]:
    """The precision-recall and ROC curves as SVG paths in a square."""
    usable = [(r.value, p.value) for r, p in zip(calibration.recall, calibration.precision, strict=True) if p]
    roc = [(f.value, r.value) for f, r in zip(calibration.false_positive_rate, calibration.recall, strict=True)]
    return {"precision": _polyline(usable), "roc": _polyline([(1.0, 1.0), *roc])}


def _polyline(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_SQUARE * x:.1f},{_SQUARE * (1 - y):.1f}" for x, y in points)


def _calibration_data(calibration: Calibration) -> dict[str, Any]:
    def triple(each: Any) -> list[float | None] | None:
        return None if each is None else [None if v is None else round(v, 4) for v in (each.value, each.low, each.high)]

    return {
        "precision": [triple(each) for each in calibration.precision],
        "recall": [triple(each) for each in calibration.recall],
        "falseRate": [triple(each) for each in calibration.false_positive_rate],
    }


def format_threshold(value: np.float32) -> str:
    """The shortest decimal number that gives the same float32."""
    return np.format_float_positional(value, trim="-") if 1e-4 <= value < 1e6 or value == 0 else str(value)


def format_percent(part: float, whole: float) -> str:
    """A share with two or more significant digits near 0 and near 1; – of nothing."""
    if not whole:
        return "–"
    share = 100 * part / whole
    small = min(share, 100 - share)
    return f"{share:.{1 if small >= 1 or small == 0 else 2 if small >= 0.1 else 3}f} %"


def _as_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
