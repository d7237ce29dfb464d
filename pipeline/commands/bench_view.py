"""Print the result of `phf bench scorers`: corpus and machine, a table of the steps, and notes."""

import os

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.labelling.bench import Bench, Measured
from pipeline.labelling.estimate import Estimate
from pipeline.lost_inputs import left_out_line
from scorers.amounts import format_count, format_duration, format_size
from scorers.doctor.machine import processor

# Shorter times are shown in seconds.
_MIN_HOURS = 0.1
# Waiting time worth a note, as a share of the measured time.
_MAX_WAIT_SHARE = 0.1


def show_bench(console: Console, bench: Bench) -> None:
    """Print the result, which contains no text of the corpus."""
    for line in (_corpus(bench), _machine(bench)):
        console.print(Text(line, style="dim"), soft_wrap=True)
    console.print()
    console.print(_steps(bench))
    console.print()
    for line in _notes(bench):
        console.print(Text(line), soft_wrap=True)


def _corpus(bench: Bench) -> str:
    sample = bench.sample
    planned = (
        ""
        if sample.planned == sample.size
        else f", of which {format_size(sample.planned)} were read and cut into units"
    )
    exact = "" if sample.sampled_units == sample.units and not planned else "about "
    return (
        f"corpus: {exact}{format_size(sample.text_bytes)} of text in {format_count(sample.sources, 'file')} of "
        f"{format_size(sample.size)}{planned}; measured on {sample.sampled_units:,} of "
        f"{format_count(sample.units, 'unit')}, spread evenly"
        + (f". {line}" if (line := left_out_line(sample.left_out)) else "")
    )


def _machine(bench: Bench) -> str:
    return (
        f"machine: {processor()}, {format_count(len(os.sched_getaffinity(0)), 'core')}; "
        f"{format_count(bench.threads, 'thread')} per scorer"
    )


def _steps(bench: Bench) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("sentences/s", "MB/s", "share", f"for {format_size(bench.total)}", "95 % range"):
        table.add_column(name, justify="right", no_wrap=True)
    for step in bench.steps:
        table.add_row(*map(Text, _cells(bench, step)))
    for unit, on_gpu in (("core", False), ("GPU", True)):
        together = bench.together(on_gpu=on_gpu)
        if together.value:
            cells = ("together", "", "", "", *_hours(together, unit))
            table.add_row(*(Text(each, style="bold") for each in cells))
    return table


def _cells(bench: Bench, step: Measured) -> list[str]:
    seconds = step.seconds
    name = f"{step.name}={step.kind}" if step.kind and step.kind != step.name else step.name
    return [
        name if step.device == "cpu" else f"{name} on {step.device}",
        f"{step.sentences / seconds:,.{0 if step.sentences >= 10 * seconds else 1}f}" if step.sentences else "",
        f"{step.size / seconds / 1e6:,.3g}" if step.size and seconds else "",
        f"{bench.share(step):.1%}",
        *_hours(bench.hours(step), "core" if step.device == "cpu" else "GPU"),
    ]


def _hours(estimate: Estimate, unit: str) -> tuple[str, str]:
    time, factor = ("h", 1) if estimate.value >= _MIN_HOURS else ("s", 3600)
    value, low, high = (_number(each * factor) for each in (estimate.value, estimate.low, estimate.high))
    return f"{value} {unit}-{time}", "" if estimate.low == estimate.high else f"{low} to {high}"


def _notes(bench: Bench) -> list[str]:
    notes = []
    for step in bench.steps:
        if step.failed:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in step.failed.most_common())
            notes.append(f"{step.name}: cannot be scored, to be quarantined: {reasons}.")
        if step.left_out:
            notes.append(f"{step.name}: does not apply to {format_count(step.left_out, 'document')} of the sample.")
        if step.kind and step.slices:
            size = sum(each.size for each in step.slices) / max(step.calls, 1)
            notes.append(
                f"{step.name}: ready after {format_duration(step.ready_s)}; {format_count(step.documents, 'document')} "
                f"in {format_duration(step.seconds)}, from {format_count(len(step.slices), 'place')}, "
                f"{format_size(size)} at once{_smaller(bench, size)}."
            )
        if step.kind and step.waited_s > _MAX_WAIT_SHARE * step.seconds:
            notes.append(
                f"{step.name}: waited {format_duration(step.waited_s)} more for a core that other processes were "
                "using; that is not counted, but an idle machine may be faster still."
            )
    notes.append("These figures do not include writing the dataset, or reading it again to seal it.")
    return notes


def _smaller(bench: Bench, size: float) -> str:
    unit = min(bench.unit_size, bench.sample.text_bytes / bench.sample.units)
    return "" if size >= unit / 2 else f"; a worker gets {format_size(unit)} at once"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
