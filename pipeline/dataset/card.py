"""Render the data card: the `README.md` of a labelled dataset, whose YAML names the shards for `load_dataset`."""

import functools
import json
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from pipeline.dataset.first_run import train_command
from pipeline.dataset.manifest import Manifest
from scorers.amounts import format_count
from scorers.printing import printable

CARD_NAME = "README.md"

_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
_MOST_SOURCES = 20


def render_card(manifest: Manifest) -> str:
    """Render the card of a sealed dataset; equal manifests give equal bytes, and no text of the corpus is included."""
    return _template().render(
        manifest=manifest,
        ledger=manifest.ledger,
        data_files=data_files(manifest.generation),
        size_category=size_category(manifest.rows),
        sources=manifest.sources[:_MOST_SOURCES],
        sources_left_out=max(0, len(manifest.sources) - _MOST_SOURCES),
        train=train_command(manifest, "DIR", "RUN"),
    )


def data_files(generation: int) -> str:
    """The glob pattern of a generation's shards, for `datasets`."""
    return f"data/{generation:04d}/*.parquet"


def size_category(rows: int) -> str:
    """The size category of the Hugging Face hub for a number of rows, such as `1K<n<10K`."""
    if rows < 1000:
        return "n<1K"
    exponent = len(str(rows)) - 4
    return f"{_SIZES[exponent]}<n<{_SIZES[exponent + 1]}" if exponent + 1 < len(_SIZES) else "n>1T"


@functools.cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("pipeline.dataset", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Markdown, not HTML; the filter `code` escapes untrusted values
    )
    environment.filters |= {
        "code": _code,
        "count": "{:,}".format,
        "of": format_count,
        "share": _share,
        "number": "{:.6g}".format,
    }
    return environment.get_template("card.md.j2")


def _code(value: Any) -> str:
    """Format a value as code in a cell of a Markdown table: one line, no backticks, pipes escaped."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    text = re.sub(r"\s+", " ", text).replace("`", "'").replace("|", "\\|").strip()
    text = printable(text)
    return f"`{text}`" if text else ""


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"
