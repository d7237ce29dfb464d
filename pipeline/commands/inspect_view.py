"""Print the result of `phf inspect`: tables, histograms, and example sentences on request."""

from collections.abc import Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline.checking.examples import Example
from pipeline.checking.inspect import Bin, ColumnReport, InspectReport
from pipeline.checking.quarantine import Quarantine
from scorers.amounts import format_count
from scorers.formatting import number, shortened

_BAR = 30

_BLOCKS = " ▏▎▍▌▋▊▉█"

_SHOWN_PERCENTILES = ("1", "10", "25", "50", "75", "90", "99", "100")


def show_report(console: Console, report: InspectReport) -> None:
    """Print the report without examples."""
    console.print(_overview(report))
    for column in report.columns:
        console.print(_column(column))
    for each in report.unfinished:
        console.print(f"\n{each}", style="bold yellow", soft_wrap=True, markup=False)


def show_examples(console: Console, column: str, examples: Mapping[str, Sequence[Example]]) -> None:
    """Print shortened sentences of the corpus; they are never interpreted as markup."""
    table = Table(title=f"Sentences by {column}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("")
    table.add_column("score", justify="right")
    table.add_column("sentence", overflow="fold")
    for group, sentences in examples.items():
        for index, each in enumerate(sentences):
            table.add_row(group if not index else "", number(each.score), Text(shortened(each.text)))
    console.print(Padding(table, (1, 0, 0, 0)))


def show_quarantine(console: Console, found: Quarantine) -> None:
    """Print the entries; they are never interpreted as markup, and `console` escapes control characters."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("source", overflow="fold")
    table.add_column("position", justify="right")
    table.add_column("reason", no_wrap=True)
    table.add_column("detail", overflow="fold")
    for each in found.entries:
        table.add_row(Text(each.source), f"{each.position:,}", Text(each.reason), Text(each.detail))
    if found.entries:
        console.print(table)
    left = found.total - len(found.entries)
    if left:
        console.print(f"… and {left:,} more of {found.total:,}; --limit 0 lists all.", markup=False, soft_wrap=True)
    if not found.total:
        console.print("Nothing is in quarantine.", markup=False)


def _overview(report: InspectReport) -> RenderableType:
    manifest, ledger = report.manifest, report.manifest.ledger
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    table.add_row("documents", f"{manifest.rows:,} ({ledger.empty:,} empty)")
    table.add_row("sentences", f"{manifest.sentences:,}")
    table.add_row("text", format_count(manifest.bytes_text, "byte"))
    table.add_row("shards", f"{len(manifest.shards):,} (generation {manifest.generation})")
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in ledger.quarantined.items())
    table.add_row("quarantined", f"{sum(ledger.quarantined.values()):,}" + (f" ({reasons})" if reasons else ""))
    if ledger.sources_cut:
        table.add_row("sources that end early", f"{ledger.sources_cut:,}")
    return Group(Text(report.uri, style="bold"), table)


def _column(report: ColumnReport) -> RenderableType:
    title = Text.assemble((report.column, "bold cyan"), f"  {report.kind}  ", (report.fingerprint, "dim"))
    share = "–" if report.share_aligned is None else f"{report.share_aligned:.1%}"
    facts = Text.assemble(
        ("aligned ", "dim"),
        (share, "bold"),
        f" of {format_count(report.sentences, 'sentence')} at score <= {number(report.threshold)}"
        + (f" ({report.threshold_spec})" if report.threshold_spec.startswith("p") else ""),
        ("   mean ", "dim"),
        number(report.mean),
        ("   documents ", "dim"),
        f"{report.documents_scored:,} scored, {report.documents_null:,} null",
    )
    parts: list[RenderableType] = [title, facts]
    if report.quantiles:
        parts += [_histogram(report), _quantiles(report)]
    return Padding(Group(*parts), (1, 0, 0, 0))


def _histogram(report: ColumnReport) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(width=_BAR, no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(style="yellow", no_wrap=True)
    most = max(each.count for each in report.histogram)
    for each in report.histogram:
        mark = "◂ threshold" if _holds(each, report.threshold) else ""
        share = f"{each.count / report.sentences:.1%}"
        table.add_row(_range(each), Text(_bar(each.count / most), style="cyan"), f"{each.count:,}", share, mark)
    return table


def _quantiles(report: ColumnReport) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("percentile", style="dim", no_wrap=True)
    for percentile in _SHOWN_PERCENTILES:
        table.add_column(f"p{percentile}", justify="right")
    table.add_row("sentences", *(number(report.quantiles[each]) for each in _SHOWN_PERCENTILES))
    table.add_row("document means", *(number(report.document_quantiles[each]) for each in _SHOWN_PERCENTILES))
    return table


def _range(each: Bin) -> str:
    if each.low is None:
        return "0"
    return f"> {number(each.low)}" if each.high is None else f"{number(each.low)} – {number(each.high)}"


def _holds(each: Bin, threshold: float) -> bool:
    above = each.low is None or threshold > each.low
    return above and (each.high is None or threshold <= each.high)


def _bar(share: float) -> str:
    """A bar with a resolution of an eighth of a character; at least one eighth for a share above 0."""
    eighths = max(1, round(share * _BAR * 8)) if share else 0
    return _BLOCKS[-1] * (eighths // 8) + _BLOCKS[eighths % 8].strip()
