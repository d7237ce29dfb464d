"""Print the result of `phf verify`: what was checked if all is well, or a line for each problem."""

from rich.console import Console
from rich.markup import escape

from pipeline.checking.verify import VerifyReport
from pipeline.lost_inputs import left_out_line
from scorers.amounts import format_count


def show_report(console: Console, report: VerifyReport) -> None:
    """Print the report."""
    facts = report.to_dict()
    if report.ok:
        console.print(f"[bold green]✓[/] {escape(report.uri)} is whole.", markup=True)
        amounts = ", ".join(format_count(facts[f"{what}s"], what) for what in ("document", "sentence", "shard", "byte"))
        console.print(f"  {amounts}: every hash, page, text, score and tag is correct.")
        console.print(
            f"  Read: {format_count(facts['records'], 'record')}; each is present once, in the dataset or in "
            f"quarantine ({facts['quarantined']:,})."
        )
        if report.parts is not None:
            console.print(
                f"  The job's plan and {format_count(facts['parts'], 'part')} of its scored units are whole too."
            )
        if report.inputs_compared:
            console.print("  Every text matches the inputs.")
        if report.manifest is not None and (line := left_out_line(report.manifest.left_out)):
            console.print(f"  {escape(line)}")
        for step in report.unfinished:
            console.print(f"  {step}", markup=False)
        return
    count = len(report.problems)
    console.print(f"[bold red]✗[/] {escape(report.uri)} is not whole: {format_count(count, 'problem')}.", markup=True)
    for problem in report.problems:
        console.print(f"  [bold]{escape(problem.path)}[/]: {escape(problem.what)}", markup=True)
    console.print(report.remedy or "", markup=False)
    for step in report.unfinished:
        if str(step) != report.remedy:
            console.print(str(step), markup=False)
