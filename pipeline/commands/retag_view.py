"""Print the result of `phf retag`: thresholds and shares of aligned sentences, before and now."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.dataset.manifest import Manifest
from pipeline.sealing.retag import Retagged
from scorers.formatting import number


def retag_facts(uri: str, retagged: Retagged) -> dict[str, Any]:
    """The result as plain JSON values."""
    return {
        "dataset": uri,
        "changed": retagged.changed,
        "generation": retagged.after.generation,
        "thresholds": {
            column: {"before": retagged.before.thresholds[column].model_dump(), "now": threshold.model_dump()}
            for column, threshold in retagged.after.thresholds.items()
        },
    }


def show_retagged(console: Console, uri: str, retagged: Retagged) -> None:
    """Print the changed thresholds."""
    if not retagged.changed:
        console.print(Text(f"{uri} already has these thresholds; nothing was done."))
        return
    console.print(Text.assemble((uri, "bold"), f" has new tags (generation {retagged.after.generation})."))
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("threshold before", "now", "aligned before", "now"):
        table.add_column(name, justify="right")
    for column in retagged.after.thresholds:
        before, now = _threshold_cells(retagged.before, column), _threshold_cells(retagged.after, column)
        table.add_row(column, before[0], now[0], before[1], now[1])
    console.print(table)


def _threshold_cells(manifest: Manifest, column: str) -> tuple[str, str]:
    threshold = manifest.thresholds[column]
    value = number(threshold.value) + (f" ({threshold.spec})" if threshold.spec.startswith("p") else "")
    return value, f"{threshold.aligned / threshold.sentences:.1%}" if threshold.sentences else "–"
