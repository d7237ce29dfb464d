"""Print the result of `phf gc`: the files that are not needed, their sizes, and whether they were removed."""

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape

from pipeline.upkeep.gc import Collected
from scorers.amounts import format_count
from scorers.paths import escape_path

_MAX_LINES = 50


def show_collected(console: Console, collected: Collected) -> None:
    """Print the result."""
    uri = collected.uri
    orphans = collected.orphans
    if collected.driver is not None:
        console.print(
            f"{uri} is being labelled on {collected.driver.host}, process {collected.driver.pid}: only files that "
            "older runs staged are checked."
        )
    if collected.finished:
        what = "moved into place" if collected.removed else "not in place yet; the next run moves them"
        console.print(f"{format_count(len(collected.finished), 'file')} committed by a dead run: {what}.")
    for path, what in collected.irregular[:_MAX_LINES]:
        console.print(f"  [bold]{escape(escape_path(path))}[/] {escape(what)}.", markup=True)
    if not orphans:
        console.print(f"{uri} contains nothing that is not needed.")
        return
    for each in orphans[:_MAX_LINES]:
        files = f"{format_count(each.files, 'file')}, " if each.files != 1 else ""
        console.print(f"  [bold]{escape(each.path)}[/]: {files}{decimal(each.size)}, {escape(each.why)}", markup=True)
    if len(orphans) > _MAX_LINES:
        console.print(f"… and {len(orphans) - _MAX_LINES:,} more")
    total = f"{format_count(sum(each.files for each in orphans), 'file')}, {decimal(collected.size)}"
    done = "removed." if collected.removed else "not needed. Add --delete to remove them."
    console.print(f"{total}: {done}")
