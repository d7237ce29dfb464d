"""Put figures that Matplotlib drew as SVG into a page, whose style sheet gives them the colours of its theme."""

import re
from collections.abc import Mapping
from xml.etree import ElementTree

from markupsafe import Markup, escape

_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"#([\w.-]+)")
_LENGTHS = ("d", "x", "y", "width", "height")
_DEFAULTS = {"stroke-linejoin: round", "stroke-linecap: butt"}  # which Matplotlib's own style sheet sets


def inline_svg(svg: bytes, name: str, description: str, colours: Mapping[str, str], *, kind: str) -> Markup:
    """An `<svg>` element without styles of its own, which the policy of the page refuses.

    Args:
        svg: a figure as `Figure.savefig` writes it.
        name: of the element; no other of the page has it, because names in SVG are names in the page.
        description: alternative text.
        colours: the names of colours by their values, `#rrggbb`. Each becomes the variable `--plot-NAME` of the page.
        kind: class of the element.
    """
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own file
    used = {found[1] for each in root.iter() for value in each.attrib.values() for found in _REFERENCE.finditer(value)}
    for each in root.iter():
        each.tag = _local(each.tag)
        each.attrib = {
            key: _REFERENCE.sub(rf"#{name}-\1", value) if key in ("href", "clip-path") else value
            for key, value in _attributes(each, name, used, colours).items()
        }
        each.text = each.tail = None
    parts = "".join(ElementTree.tostring(each, encoding="unicode") for each in root if not _is_style(each))
    box, text = root.attrib["viewBox"], escape(description)
    return Markup(  # noqa: S704 - our own file
        f'<svg class="{kind}" role="img" aria-label="{text}" viewBox="{box}" stroke-linejoin="round">{parts}</svg>'
    )


def _attributes(each: ElementTree.Element, name: str, used: set[str], colours: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for key, value in each.attrib.items():
        if key == "style":
            for declaration in value.split(";"):
                if declaration.strip() and declaration.strip() not in _DEFAULTS:
                    part, _, setting = (word.strip() for word in declaration.partition(":"))
                    found[part] = f"var(--plot-{colours[setting]})" if setting in colours else setting
        elif key == "id":
            if value in used:
                found[key] = f"{name}-{value}"
        else:
            # Two digits are enough for lengths in points.
            found[_local(key)] = _NUMBER.sub(_shortened, value) if key in _LENGTHS else value
    return found


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _is_style(each: ElementTree.Element) -> bool:
    return each.tag == "defs" and [child.tag for child in each] == ["style"]


def _shortened(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
