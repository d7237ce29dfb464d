"""Figures in a page: coloured by its style sheet, with names of their own."""

import re

from training.comparison.style import COLOURS, Look, drawing, new_figure, render
from training.comparison.svg import inline_svg

NAMES = {light: name for name, (light, _) in COLOURS.items()}


def drawn() -> bytes:
    look = Look()
    with drawing(look):
        figure = new_figure(3, 2)
        axes = figure.subplots()
        axes.plot([0, 1, 2], [1.23456789, 0, 2], color=look.colour("awr"), **look.marker("awr", 6))
        axes.fill_between([0, 1], [0, 1], [1, 2], color=look.colour("mle"), alpha=0.12)
        axes.set_title("a < b & c")
        return render(figure, look).svg


def test_two_figures_of_a_page_share_no_name_and_have_no_style_of_their_own() -> None:
    one, other = (inline_svg(drawn(), name, 'a "b" <c>', NAMES, kind="wide") for name in ("one", "other"))
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg, names in zip((one, other), ids, strict=True):
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) == names
        assert not re.search(r"style|<\?xml|<!DOCTYPE|metadata", svg)
        assert 'aria-label="a &#34;b&#34; &lt;c&gt;"' in svg
    assert 'fill="var(--plot-mle)" fill-opacity="0.12"' in one
    assert 'fill="var(--plot-awr)"' in one
    assert "1.2345" not in one


def test_a_glyph_keeps_its_scale() -> None:
    assert 'transform="scale(0.015625)"' in inline_svg(drawn(), "one", "", NAMES, kind="wide")
