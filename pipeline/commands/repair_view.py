"""Print the result of `phf repair`: what was repaired, and what is left."""

from rich.console import Console
from rich.markup import escape

from pipeline.upkeep.repair import Repaired
from scorers.amounts import format_count

_MAX_LINES = 50


def show_repaired(console: Console, repaired: Repaired) -> None:
    """Print the result."""
    uri = repaired.uri
    if not repaired.problems:
        console.print(f"[bold green]✓[/] {escape(uri)} is whole; nothing was done.", markup=True)
        _show_unfinished(console, repaired)
        return
    found = format_count(len(repaired.problems), "problem")
    console.print(f"{uri} had {found}." if not repaired.dry_run else f"{uri} has {found}. Nothing was changed.")
    if repaired.done:
        console.print("Would be done:" if repaired.dry_run else "Done:")
    _show(console, [(each.path, each.what) for each in repaired.done])
    for title, stray in (("Cannot be repaired:", False), ("Should not be there:", True)):
        lines = [(each.path, each.what) for each in repaired.left if each.stray == stray]
        if lines:
            console.print(f"[bold red]✗[/] {title}", markup=True)
            _show(console, lines)
    if repaired.left:
        return
    if not repaired.dry_run:
        console.print("[bold green]✓[/] It is whole now.", markup=True)
    _show_unfinished(console, repaired)


def _show_unfinished(console: Console, repaired: Repaired) -> None:
    for each in repaired.unfinished:
        console.print(str(each), markup=False)


def _show(console: Console, lines: list[tuple[str, str]]) -> None:
    for path, what in lines[:_MAX_LINES]:
        console.print(f"  [bold]{escape(path)}[/]: {escape(what)}", markup=True)
    if len(lines) > _MAX_LINES:
        console.print(f"  … and {len(lines) - _MAX_LINES:,} more")
