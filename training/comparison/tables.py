"""The tables of a comparison, with plain text in cells, for the page and the terminal."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from training.comparison import groups
from training.comparison.differences import Difference, held_out_differences, misalignment_differences
from training.comparison.findings import same_hit_rate
from training.comparison.groups import Group
from training.comparison.load import Comparison
from training.comparison.run import LoadedRun
from training.comparison.section import NONE, Cell, Row, Section, Table
from training.comparison.wording import listed, signed_number
from training.evaluation.format_figures import number, percent
from training.runs.report import MAXIMUM_OF


def most_tokens(comparison: Comparison) -> str:
    """The limits of the samples' lengths in tokens, such as `16 or 32`."""
    limits = sorted({run.report.samples.max_new_tokens for run in comparison.runs})
    return listed([f"{limit:,}" for limit in limits], "or")


def result_section(comparison: Comparison) -> Section:
    """The main figures, and those of each seed where a figure is a mean over several."""
    return Section("Results", tables=[with_seeds(comparison, result_table(comparison))])


def detail_section(comparison: Comparison) -> Section:
    """Differences, samples and data."""
    differences = difference_table(comparison)
    return Section(
        "More tables",
        tables=[*([differences] if differences else []), sample_table(comparison), stream_table(comparison)],
    )


def with_seeds(comparison: Comparison, table: Table) -> Table:
    """The results, with those of each seed below those of a group of several."""
    rows: list[Row] = []
    for group, row in zip(comparison.groups, table.rows, strict=True):
        rows.append(row)
        if len(group.runs) > 1:
            _, seeds = _results(comparison, [Group(run.label, [run]) for run in group.runs])
            rows += [replace(each, nested=True) for each in seeds]
    if len(rows) == len(table.rows):
        return table
    note = f"{table.note} Those of a single seed are over its samples or held-out documents."
    return replace(table, note=note, rows=rows)


def _results(comparison: Comparison, of: Sequence[Group]) -> tuple[list[str], list[Row]]:
    held_out = any(run.report.held_out for run in comparison.runs)
    telling = same_hit_rate(comparison) is None
    rows = []
    for group in of:
        cells = [Cell.of(group.figure(groups.misalignment)), Cell.of(group.figure(groups.expected_maximum))]
        if telling:
            cells.append(Cell.of(group.figure(groups.hit_rate), share=True))
        if held_out:
            # Guidance does not change the held-out loss: leave it out for guided samples.
            plain = group.guidance is None
            cells.append(Cell.of(group.figure(groups.bits_per_byte) if plain else None, digits=4))
            cells.append(Cell.of(group.figure(groups.perplexity) if plain else None))
        rows.append(Row(group.label, cells, group.objective, group.guidance is not None))
    columns = ["misalignment, mean", f"expected maximum of {MAXIMUM_OF}", *(["hit rate"] if telling else [])]
    return columns + (["held-out bits per byte", "held-out perplexity"] if held_out else []), rows


def result_table(comparison: Comparison) -> Table:
    """The results: alignment and capability."""
    columns, rows = _results(comparison, comparison.groups)
    same = same_hit_rate(comparison)
    threshold = number(comparison.baseline.report.samples.hit_threshold)
    hits = (
        f"A hit is a sample with a score above {threshold}."
        if same is None
        else f"{'All' if same else 'None'} of the samples of any run have a score above {threshold}, so there are no "
        "hit rates to compare."
    )
    return Table(
        "Alignment and capability",
        f"Lower is better everywhere. {hits} Intervals are 95 %.{_about_guided(comparison)}",
        columns,
        rows,
    )


def _about_guided(comparison: Comparison) -> str:
    return (
        " g = …: the same model, its samples guided with this scale away from its worst tag (1 is plain sampling)."
        if any(run.guidance is not None for run in comparison.sampled)
        else ""
    )


def difference_table(comparison: Comparison) -> Table | None:
    """The differences of each group from the baseline; None for a single group."""
    misalignment = {each.group.label: each for each in misalignment_differences(comparison)}
    held_out = {each.group.label: each for each in held_out_differences(comparison)}
    if not misalignment and not held_out:
        return None
    base = comparison.base
    columns = (misalignment, held_out) if held_out else (misalignment,)
    return Table(
        f"Differences from {base.label}",
        "Bits per byte of single seeds are compared document by document on the same text, so that the difficulty of a "
        "document cancels out. A difference is called lower or higher if its 95 % interval excludes 0.",
        ["misalignment", *(["held-out bits per byte"] if held_out else [])],
        [
            Row(
                group.label,
                [_difference(each.get(group.label)) for each in columns],
                group.objective,
                group.guidance is not None,
            )
            for group in comparison.groups
            if group is not base
        ],
    )


def sample_table(comparison: Comparison) -> Table:
    """Properties of the samples, and the cost of the training."""
    leakage = any(run.report.leakage for run in comparison.runs)
    rows = []
    for run in comparison.sampled:
        samples = run.report.samples
        cells = [
            Cell.count(samples.number, f"{samples.empty:,} empty"),
            Cell.of(samples.tokens),
            Cell.share(samples.ended, samples.number),
            Cell.plain(samples.distinct_1),
            Cell.plain(samples.distinct_2),
        ]
        if leakage:
            cells.append(Cell(NONE) if run.guidance is not None else _leakage(run))
        tokens, seconds = trained_tokens(run), run.facts.seconds
        cost = [Cell(short_count(tokens), order=tokens), Cell(duration(seconds), order=seconds)]
        rows.append(Row.of(run, [*cells, *(cost if run.guidance is None else [Cell(NONE)] * 2)]))
    note = (
        f"Length in tokens, at most {most_tokens(comparison)}. "
        "Distinct-1 and -2: distinct n-grams of token ids divided by all."
    )
    if leakage:
        note += " Leakage: share of samples with a control token if none is banned, and share of such tokens."
    return Table(
        "Samples and training",
        note,
        [
            "samples",
            "length",
            "ended by themselves",
            "distinct\N{NON-BREAKING HYPHEN}1",
            "distinct\N{NON-BREAKING HYPHEN}2",
            *(["leakage, tags allowed"] if leakage else []),
            "tokens trained on",
            "training time",
        ],
        rows,
    )


def stream_table(comparison: Comparison) -> Table:
    """The training data of each run."""
    rows = []
    for run in comparison.runs:
        stream, horizon = run.facts.stream, run.facts.horizon
        left_out = stream.get("documents_left_out") or {}
        tags = stream.get("tags") or {}
        total = sum(tags.values()) - tags.get("dropped", 0)
        threshold = run.facts.threshold
        rows.append(
            Row.of(
                run,
                [
                    _count(stream.get("documents_used")),
                    _count(left_out.get("filtered")),
                    _count(left_out.get("held_out")),
                    Cell.share(
                        next(iter(tags.values())),
                        total,
                        f"{percent(tags.get('dropped', 0) / sum(tags.values()))} dropped",
                    )
                    if total
                    else Cell(NONE),
                    Cell(number(threshold.value), threshold.origin.partition(":")[0], threshold.value)
                    if threshold
                    else Cell(NONE),
                    _count(stream.get("tokens")),
                    Cell.plain(horizon.epochs),
                    Cell(short_count(run.facts.model.parameters), order=run.facts.model.parameters),
                ],
            )
        )
    return Table(
        "What each run was trained on",
        "Tags: the share of control tokens that are aligned (with quantiles: the best). Threshold: the highest score "
        "that counts as aligned, for a sentence (filtering: for a document).",
        [
            "documents",
            "filtered",
            "held out",
            "tags aligned",
            "threshold",
            "tokens in the stream",
            "epochs",
            "parameters",
        ],
        rows,
    )


def trained_tokens(run: LoadedRun) -> int:
    """The number of tokens that a run was trained on."""
    return run.facts.step * run.facts.horizon.batch_size * run.facts.model.context_length


def short_count(value: float) -> str:
    """Format a large number with a unit: 983 k, 1.09 M, 3.3 B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Format seconds in the two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def _difference(difference: Difference | None) -> Cell:
    if difference is None:
        return Cell(NONE)
    verdict = {"lower": "lower", "higher": "higher", "unclear": "no clear difference"}[difference.verdict]
    ends = signed_interval(difference)
    value = difference.estimate.value
    return Cell(signed_number(value), f"{ends} · {verdict}" if ends else verdict, value)


def signed_interval(difference: Difference) -> str:
    """Format the ends of a difference's interval with their signs."""
    low, high = difference.estimate.low, difference.estimate.high
    return "" if low is None or high is None else f"{signed_number(low)} to {signed_number(high)}"


def _leakage(run: LoadedRun) -> Cell:
    leakage = run.report.leakage
    if leakage is None or leakage.samples is None:
        return Cell("no tags")
    tokens = "" if leakage.tokens is None else f"{percent(leakage.tokens.value)} of tokens"
    return Cell(percent(leakage.samples.value), tokens, leakage.samples.value)


def _count(value: Any) -> Cell:
    return Cell.count(value) if isinstance(value, int) else Cell(NONE)
