"""Print an evaluation report in a terminal."""

from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from scorers.amounts import format_count, format_ended
from scorers.printing import printable
from scorers.terminal import Terminal
from training.evaluation.diversity import COMPARED
from training.evaluation.evaluate import Evaluation
from training.evaluation.format_figures import interval, number, percent
from training.runs.folder import RunFolder
from training.runs.report import (
    MAXIMUM_OF,
    DiversityFacts,
    Estimate,
    EvaluationReport,
    FieldFacts,
    SampleFacts,
    report_folder,
)

Formatter = Callable[[float], str]
Row = tuple[str, Estimate | None, Formatter]  # name, figure, formatter


def print_report(run: RunFolder, evaluation: Evaluation, show_text: int = 0) -> None:
    """Print the figures, the warnings, and the `show_text` samples with the worst scores."""
    console = Terminal()
    report = evaluation.report
    console.print()
    console.print_figures(report_table(report, str(run.path)))
    for warning in report.warnings:
        console.print(f"[yellow]Note:[/yellow] {escape(warning)}", markup=True)
    folder = report_folder(run, None if report.column == run.read_facts().column else report.column)
    console.print(f"Report, samples and costs by document: {folder}", soft_wrap=True)
    for name, scored in (("sample", evaluation.scored), ("guided sample", evaluation.guided_scored)):
        if scored is None:
            continue
        for index in scored.worst(show_text):
            what = scored.reasons[index] or number(float(scored.scores[index]))
            console.print(f"\n[bold]{name} {index}[/bold]  {escape(what)}", markup=True)
            console.print(scored.texts[index], soft_wrap=True)


def report_table(report: EvaluationReport, title: str) -> Table:
    """The figures, one per row: name, value, 95 % interval, and the same for guided samples if there are any."""
    samples, held_out, leakage = report.samples, report.held_out, report.leakage
    guided = report.guided.samples if report.guided is not None else None
    table = Table(
        title=f"{title}  ({report.objective}, step {report.step:,})", title_justify="left",
        caption=_what_was_measured(report), caption_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False,
    )  # fmt: skip
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    if report.guided is not None:
        table.add_column(f"guided, g = {report.guided.scale:g}", justify="right")
        table.add_column("95 % interval", justify="right")
    rows = sample_rows(report.column, [samples, *([guided] if guided else [])])
    others: list[Row] = []
    if leakage is not None:
        others += [
            ("leakage: samples with a tag if tags were allowed", leakage.samples, percent),
            ("leakage: tags among their tokens", leakage.tokens, percent),
        ]
    if held_out is not None:
        others += [
            ("held-out bits per byte", held_out.bits_per_byte, number),
            ("  with the opposite tags", held_out.bits_per_byte_swapped, number),
            ("  cost of the opposite tags", held_out.swap_cost, number),
            ("  with every tag aligned", held_out.bits_per_byte_aligned, number),
            ("  by token frequencies alone", held_out.unigram_bits_per_byte, number),
            ("held-out perplexity of a token", held_out.perplexity, number),
            ("misalignment of the held-out documents", held_out.misalignment, number),
        ]
    if report.by is not None:
        others += _of_groups(report.by)
    for name, estimates, show in [*rows, *((name, [estimate], show) for name, estimate, show in others)]:
        if any(estimates):
            table.add_row(name, *(text for each in estimates for text in figure_cells(each, show)))
    return table


def sample_rows(column: str, parts: Sequence[SampleFacts]) -> list[tuple[str, list[Estimate | None], Formatter]]:
    """The figures of several sets of samples, one per row: name, a figure for each set, formatter."""
    found = [{name: (estimate, show) for name, estimate, show in _of_samples(each, column)} for each in parts]
    shows = {name: show for each in found for name, (_, show) in each.items()}
    return [(name, [each.get(name, (None, show))[0] for each in found], show) for name, show in shows.items()]


def figure_cells(estimate: Estimate | None, show: Formatter) -> tuple[str, str]:
    """A figure and its interval; a dash for a figure that was not measured."""
    return ("–", "") if estimate is None else (show(estimate.value), interval(estimate, show))


def _of_samples(samples: SampleFacts, column: str) -> list[Row]:
    return [
        (f"misalignment ({column}), mean", samples.misalignment, number),
        (f"expected maximum of {MAXIMUM_OF} samples", samples.expected_maximum, number),
        (f"hit rate: samples with a score > {samples.hit_threshold:.4g}", samples.hit_rate, percent),
        ("length in tokens", samples.tokens, number),
        *([] if samples.compiling is None else [("samples that compile", samples.compiling.share, percent)]),
        ("distinct-1", _exact(samples.distinct_1), number),
        ("distinct-2", _exact(samples.distinct_2), number),
        *([] if samples.diversity is None else _of_diversity(samples.diversity)),
    ]


def _of_groups(by: FieldFacts) -> list[Row]:
    named = [(f"no {by.field}" if each.value is None else f"{by.field}={each.value}", each) for each in by.groups]
    rows: list[Row] = []
    for name, group in [*named, *([] if by.rest is None else [("all others", by.rest)])]:
        of = f"{escape(printable(name))}, {format_count(group.documents, 'document')}"
        rows += [
            (f"{of}: bits per byte", group.bits_per_byte, number),
            ("  perplexity of a token", group.perplexity, number),
            ("  misalignment", group.misalignment, number),
        ]
    return rows


def _of_diversity(diversity: DiversityFacts) -> list[Row]:
    return [
        ("  within a sample, distinct-2", diversity.distinct[1], number),
        ("entropy of tokens, bits", diversity.entropy[0], number),
        ("entropy of 3-grams, bits", diversity.entropy[2], number),
        (f"Self-BLEU-5 of at most {format_count(COMPARED, 'sample')}", diversity.self_bleu_5, number),
    ]


def _what_was_measured(report: EvaluationReport) -> str:
    samples, held_out = report.samples, report.held_out
    text = (
        f"{format_count(samples.number, 'sample')} of at most {format_count(samples.max_new_tokens, 'token')}: "
        f"{samples.scored:,} scored, {samples.empty:,} empty, {format_ended(samples.ended)}."
    )
    if held_out is not None:
        text += (
            f" Held-out text: {format_count(held_out.documents, 'document')}, {format_count(held_out.bytes, 'byte')}."
        )
    return text


def _exact(value: float | None) -> Estimate | None:
    return None if value is None else Estimate(value=value)
