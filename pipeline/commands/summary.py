"""Print the summary of `phf label` and `phf score`: figures, where the dataset is, and what to run next."""

import os
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.dataset.first_run import train_command
from pipeline.labelling.label import Summary
from pipeline.lost_inputs import cut_lines, cut_sources, left_out_line
from pipeline.quarantine_limit import QuarantineLimit
from scorers.amounts import format_count, format_duration, format_mean_rate, format_size
from scorers.errors import QuarantineLimitError
from scorers.registry import documents_of
from scorers.shell import phf


def summary_facts(summary: Summary) -> dict[str, Any]:
    """The summary as plain JSON values."""
    manifest, progress = summary.manifest, summary.progress
    ledger = manifest.ledger
    return {
        "output": summary.output,
        "generation": manifest.generation,
        "already_done": progress is None,
        "records": ledger.records,
        "labelled": ledger.labelled,
        "empty": ledger.empty,
        "quarantined": ledger.quarantined,
        "purged": ledger.purged,
        "share_quarantined": _share(sum(ledger.unlabelled.values()), ledger.records),
        "sources_cut": ledger.sources_cut,
        "cut": [
            {"source": each.uri, "records": each.records, "size": each.size, "unread": each.unread}
            for each in cut_sources(manifest.sources)
        ],
        "share_unread": _share(*_unread(summary)),
        "left_out": [each.model_dump() for each in manifest.left_out],
        "sentences": manifest.sentences,
        "bytes_text": manifest.bytes_text,
        "shards": len(manifest.shards),
        "unfinished": [str(step) for step in summary.unfinished],
        "bytes": sum(shard.size for shard in manifest.shards),
        "columns": {
            column: {
                "kind": entry.kind,
                "threshold": manifest.thresholds[column].value,
                "spec": manifest.thresholds[column].spec,
                "sentences": manifest.thresholds[column].sentences,
                "aligned": manifest.thresholds[column].aligned,
                "share_aligned": _share(manifest.thresholds[column].aligned, manifest.thresholds[column].sentences),
                "seconds": None if progress is None else progress.seconds[column],
            }
            for column, entry in manifest.scorers.items()
        },
        "run": None
        if progress is None
        else {
            "units": progress.units,
            "units_before": progress.before,
            "workers": progress.workers,
            "records": progress.records,
            "records_per_s": _rate(progress.records, summary.elapsed_s.get("label")),
            "sentences_per_s": _rate(progress.sentences, summary.elapsed_s.get("label")),
            "seconds_by_step": {step: progress.seconds[step] for step in ("read", "split", "write")},
            "elapsed_s": summary.elapsed_s,
        },
    }


def show_summary(summary: Summary, console: Console) -> None:
    """Print the summary."""
    manifest, progress = summary.manifest, summary.progress
    ledger = manifest.ledger
    if progress is None:
        console.print(f"Everything is already labelled and sealed: {summary.output}. Nothing was done.\n")
    else:
        total = format_duration(sum(summary.elapsed_s.values()))
        what = f"Added {' and '.join(summary.added)} to" if summary.added else "Labelled"
        of = "" if manifest.rows == ledger.records else f" of {ledger.records:,}"
        records = format_count(manifest.rows, "record") if not of else f"{manifest.rows:,}{of} records"
        console.print(f"{what} {records}, {format_count(manifest.sentences, 'sentence')}, in {total}.\n")
    facts = Table.grid(padding=(0, 2))
    facts.add_row("documents", f"{ledger.labelled:,}" + (f" and {ledger.empty:,} empty" if ledger.empty else ""))
    facts.add_row("quarantined", _quarantine(summary))
    if ledger.purged:
        facts.add_row("purged", f"{ledger.purged:,}")
    if ledger.sources_cut:
        facts.add_row("cut inputs", Text("\n".join([_cut(summary), *cut_lines(manifest.sources)]), overflow="fold"))
    if line := left_out_line(manifest.left_out):
        facts.add_row("left out", Text(line, overflow="fold"))
    if progress is not None and progress.records:
        facts.add_row("speed", _speed(summary))
    console.print(facts)
    console.print()
    console.print(_columns(summary))
    console.print()
    size = sum(shard.size for shard in manifest.shards)
    console.print(
        f"The dataset is in {summary.output} ({format_count(len(manifest.shards), 'shard')}, {format_size(size)}).",
        soft_wrap=True,
    )
    for warning in [*_warnings(summary), *map(str, summary.unfinished)]:
        console.print(warning, style="bold yellow", soft_wrap=True, markup=False)
    console.print("Next:")
    for line in _next_steps(summary):
        console.print(f"  {line}", soft_wrap=True, markup=False)


def check_quarantine(summary: Summary, limit: QuarantineLimit) -> None:
    """Check the number of quarantine entries against the limit.

    Raises:
        QuarantineLimitError: there are more entries than the limit allows.
    """
    ledger, sources = summary.manifest.ledger, summary.manifest.sources
    quarantined = sum(ledger.unlabelled.values())
    unread, size = _unread(summary)
    cut = cut_sources(sources)
    # Older versions did not record how much of an input was not read.
    lost = sum(not each.records for each in cut) + max(0, ledger.sources_cut - len(cut))
    if limit.exceeded(quarantined, ledger.records, cut=ledger.sources_cut, unread=unread, size=size, lost=lost):
        parts = []
        if quarantined:
            share = percent(quarantined, ledger.records)
            is_ = "is" if quarantined == 1 else "are"
            parts.append(f"{format_count(quarantined, 'record')} {is_} in quarantine ({share} of {ledger.records:,})")
        if ledger.sources_cut:
            was = "was" if ledger.sources_cut == 1 else "were"
            parts.append(f"{format_count(ledger.sources_cut, 'input')} {was} not read whole ({_cut_share(summary)})")
        raise QuarantineLimitError(
            f"{' and '.join(parts)}; --max-quarantined is {limit.text}. Everything else is labelled and sealed. "
            "Source, position and reason of each: "
            + ", ".join(f"{summary.output}/{file.path}" for file in ledger.quarantine[:3])
        )


def percent(part: int, whole: int) -> str:
    """Format a share with two significant digits below 10 %, so that `0.00024%` does not read as 0."""
    return f"{100 * part / whole:.2g}%" if 0 < part < whole / 10 else f"{_share(part, whole) or 0:.0%}"


def _columns(summary: Summary) -> Table:
    table = Table("column", "scorer", "threshold", box=None, padding=(0, 2), pad_edge=False, header_style="bold")
    table.add_column("aligned", justify="right")
    progress = summary.progress
    timed = progress is not None and progress.records > 0
    slowest = ""
    if progress is not None and timed:
        table.add_column("time", justify="right")
        slowest = max(summary.manifest.scorers, key=lambda column: progress.seconds[column])
        if len(summary.manifest.scorers) > 1:
            table.add_column("")
    for column, entry in summary.manifest.scorers.items():
        threshold = summary.manifest.thresholds[column]
        share = _share(threshold.aligned, threshold.sentences)
        shown = f"{threshold.value:.4g}" + (f" ({threshold.spec})" if threshold.spec.startswith("p") else "")
        row = [column, entry.kind, shown, "no sentences" if share is None else f"{share:.1%}"]
        if progress is not None and timed:
            row += [format_duration(progress.seconds[column]), "slowest" if column == slowest else ""]
        table.add_row(*row[: len(table.columns)])
    return table


def _quarantine(summary: Summary) -> str:
    ledger = summary.manifest.ledger
    parts = [f"{reason} {count:,}" for reason, count in sorted(ledger.unlabelled.items())]
    count = sum(ledger.unlabelled.values())
    share = f", {percent(count, ledger.records)} of the records" if count else ""
    return f"{count:,}" + (f" ({', '.join(parts)})" if parts else "") + share


def _cut(summary: Summary) -> str:
    return f"{summary.manifest.ledger.sources_cut:,} not read whole, {_cut_share(summary)}"


def _cut_share(summary: Summary) -> str:
    return f"{percent(*_unread(summary))} of the inputs' bytes"


def _unread(summary: Summary) -> tuple[int, int]:
    """Bytes of the inputs that were not read, and of all inputs; at least one per input that was not read."""
    sources = summary.manifest.sources
    return sum(each.unread for each in sources), sum(max(each.size, each.unread) for each in sources)


def _speed(summary: Summary) -> str:
    progress = summary.progress
    seconds = summary.elapsed_s.get("label")
    if progress is None or not seconds:
        return "unknown"
    return (
        f"{format_mean_rate(progress.records, seconds, 'records')}, "
        f"{format_mean_rate(progress.sentences, seconds, 'sentences')} with {format_count(progress.workers, 'worker')}"
    )


def _warnings(summary: Summary) -> list[str]:
    """Warnings about columns in which no sentence has a score."""
    manifest = summary.manifest
    warnings = []
    for column in manifest.scorers if manifest.sentences else ():
        if manifest.thresholds[column].sentences:
            continue
        line = f"No sentence has a score in {column}, so it cannot be used for training."
        if documents_of(manifest.scorers[column].spec) == "python":
            line += " Its scorer is for Python: documents that were read as prose need --kind python."
        warnings.append(line)
    return warnings


def _next_steps(summary: Summary) -> list[str]:
    train = train_command(summary.manifest, summary.output, cores=len(os.sched_getaffinity(0)))
    return [
        phf("verify", summary.output),
        phf("inspect", summary.output),
        *([train] if train else []),
    ]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _rate(count: int, seconds: float | None) -> float | None:
    return count / seconds if seconds else None
