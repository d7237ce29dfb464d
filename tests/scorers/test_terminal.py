"""Tables of figures in narrow terminals."""

import io

import pytest
from rich.box import SIMPLE_HEAD
from rich.table import Table

from scorers.terminal import Terminal

FIGURES = ("0.000123", "0.0001–0.000456", "−0.0401 to 0.0302", "12.3\N{NO-BREAK SPACE}%")


@pytest.mark.parametrize("width", [80, 30])
def test_no_figure_is_cut(width: int) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("figure")
    for heading in ("most misaligned tenth (16)", "95 % interval", "difference from the baseline", "hit rate"):
        table.add_column(heading, justify="right")
    table.add_row("misalignment (toxicity), mean over all of the samples", *FIGURES)
    file = io.StringIO()
    Terminal(file=file, width=width).print_figures(table)
    lines = file.getvalue().splitlines()
    assert any(all(figure in line for figure in FIGURES) for line in lines)
    assert {"figure", "misalignment", "(toxicity),", "misaligned", "difference"} <= {*file.getvalue().split()}
    assert width < 80 or max(map(len, lines)) <= 80
