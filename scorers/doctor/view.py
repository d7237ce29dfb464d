"""Print the report of `phf doctor`: the machine, a table of scorers, what each is based on, and what to fix."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scorers.amounts import format_count, format_size
from scorers.doctor.report import Examined, Report

_HASH_DIGITS = 12


def print_report(console: Console, report: Report) -> None:
    """Print the whole report."""
    machine = Table(box=None, show_header=False, pad_edge=False)
    machine.add_column(style="dim", no_wrap=True)
    machine.add_column(overflow="fold")
    for fact in report.machine:
        machine.add_row(Text(fact.name), Text(fact.text))
    console.print(machine)
    console.print()
    console.print(_scorers(report.scorers))
    for each in report.scorers:
        for line in _basis(each):
            console.print(Text(line, style="dim"), soft_wrap=True)
    remedies = report.remedies()
    console.print(Text("\nTo fix:" if remedies else "\nNo problems found.", style="bold"))
    for name, remedy in remedies.items():
        console.print(Text.assemble((f"{name}: ", "yellow"), remedy), soft_wrap=True)


def _scorers(examined: list[Examined]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("scorer", "runs", "on"):
        table.add_column(name, no_wrap=True)
    for name in ("ready", "memory", "sentences/s", "MB/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in examined:
        name = each.column if each.column == each.kind else f"{each.column}={each.kind}"
        runs = Text("no", style="red") if each.problem is not None else Text("yes", style="green")
        table.add_row(Text(name), runs, Text(_device(each)), *map(Text, _figures(each)))
    return table


def _device(each: Examined) -> str:
    return " ".join(filter(None, (each.found.get("device"), each.found.get("precision"))))


def _figures(each: Examined) -> list[str]:
    found, sentences, size = each.found, each.sentences_per_s, each.bytes_per_s
    return [
        f"{found['ready_s']:.1f} s" if "ready_s" in found else "",
        format_size(found["memory"]) if found.get("memory") else "",
        f"{sentences:,.{0 if sentences >= 10 else 1}f}" if sentences else "",
        f"{size / 1e6:.3g}" if size else "",
    ]


def _basis(each: Examined) -> list[str]:
    found, measured = each.found, each.found.get("measured")
    lines = [f"  from {place}" for place in each.places]
    if found.get("sha256"):
        shown = ", ".join(f"{name} {digest[:_HASH_DIGITS]}…" for name, digest in found["sha256"].items())
        lines.append(f"  sha256 {shown}")
    if found.get("libraries"):
        lines.append("  with " + ", ".join(f"{name} {version}" for name, version in found["libraries"].items()))
    if measured:
        failures = "".join(f", {count} failed ({reason})" for reason, count in measured["failures"].items())
        lines.append(f"  measured on {format_count(measured['documents'], 'document')} of {measured['on']}{failures}")
    return [each.column, *lines] if lines else []
