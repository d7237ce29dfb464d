"""The tables of a comparison, with plain text in cells, for the page and the terminal."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from training.comparison import groups
from training.comparison.differences import Difference, held_out_differences, misalignment_differences
from training.comparison.findings import same_hit_rate
from training.comparison.groups import Group
from training.comparison.load import Comparison
from training.comparison.run import LoadedRun
from training.comparison.section import NONE, Cell, Row, Section, Table
from training.comparison.wording import duration, listed, signed_number
from training.evaluation.format_figures import number, percent
from training.runs.report import MAXIMUM_OF, Estimate, SampleFacts
from training.statistics import NOT_NEGATIVE, SHARE


@dataclass(frozen=True)
class SampleColumn:
    """A figure of samples that not all of them have.

    Attributes:
        heading: of its column.
        note: what it is.
        figure: the figure; None if it was not measured.
        share: whether it is a share.
    """

    heading: str
    note: str
    figure: Callable[[SampleFacts], Estimate | None]
    share: bool = False

    def cell(self, estimate: Estimate | None) -> Cell:
        """The cell of such a figure."""
        return Cell.of(estimate, share=self.share)


_SAMPLE_COLUMNS = (
    SampleColumn(
        "Self\N{NON-BREAKING HYPHEN}BLEU\N{NON-BREAKING HYPHEN}5",
        "Self-BLEU-5, over tokens: 1 if all samples are alike.",
        lambda samples: samples.diversity.self_bleu_5 if samples.diversity else None,
    ),
    SampleColumn(
        "compile",
        "Compile: the share of samples that Python compiles, up to the last whole statement of those that were cut.",
        lambda samples: samples.compiling.share if samples.compiling else None,
        share=True,
    ),
)


def sample_columns(samples: Iterable[SampleFacts]) -> list[SampleColumn]:
    """The columns that any of these have a figure for."""
    every = list(samples)
    return [column for column in _SAMPLE_COLUMNS if any(column.figure(each) is not None for each in every)]


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
        seconds = fmean(run.facts.seconds for run in group.runs)
        cells.append(Cell(duration(seconds), "twice the sampling" if group.passes > 1 else "", seconds))
        rows.append(Row(group.label, cells, group.objective, group.guidance is not None))
    columns = ["misalignment, mean", f"expected maximum of {MAXIMUM_OF}", *(["hit rate"] if telling else [])]
    columns += ["held-out bits per byte", "held-out perplexity"] if held_out else []
    return [*columns, "training time"], rows


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
        "Alignment, capability and cost",
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
    """Properties of the samples, by group and seed."""
    leakage = any(run.report.leakage for run in comparison.runs)
    more = sample_columns(run.report.samples for run in comparison.sampled)
    rows = []
    for group in comparison.groups:
        rows.append(Row(group.label, _samples(group.runs, leakage, more), group.objective, group.guidance is not None))
        if len(group.runs) > 1:
            rows += [Row.of(run, _samples([run], leakage, more), nested=True) for run in group.runs]
    note = (
        f"Length in tokens, at most {most_tokens(comparison)}. "
        "Distinct-1 and -2: distinct n-grams of token ids divided by all."
    )
    note += "".join(f" {column.note}" for column in more)
    if any(len(group.runs) > 1 for group in comparison.groups):
        note += " Of several seeds, samples are counted together, and other figures are means."
    if leakage:
        note += " Leakage: share of samples with a control token if none is banned, and share of such tokens."
    return Table(
        "Samples",
        note,
        [
            "samples",
            "length",
            "ended by themselves",
            "distinct\N{NON-BREAKING HYPHEN}1",
            "distinct\N{NON-BREAKING HYPHEN}2",
            *(column.heading for column in more),
            *(["leakage, tags allowed"] if leakage else []),
        ],
        rows,
    )


def _samples(runs: Sequence[LoadedRun], leakage: bool, more: Sequence[SampleColumn]) -> list[Cell]:
    each = [run.report.samples for run in runs]
    number = sum(samples.number for samples in each)
    distinct = [[samples.distinct_1 for samples in each], [samples.distinct_2 for samples in each]]
    cells = [
        Cell.count(number, f"{sum(samples.empty for samples in each):,} empty"),
        Cell.of(groups.over_seeds([samples.tokens for samples in each], NOT_NEGATIVE)),
        Cell.share(sum(samples.ended for samples in each), number),
        *(Cell.plain(_mean(values)) for values in distinct),
        *(column.cell(groups.over_seeds([column.figure(samples) for samples in each], SHARE)) for column in more),
    ]
    if leakage:
        cells.append(Cell(NONE) if runs[0].guidance is not None else _leakage(runs))
    return cells


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def stream_table(comparison: Comparison) -> Table:
    """The training data of each group, and of each seed where seeds differ."""
    rows = []
    targets = any(run.facts.targets is not None for group in comparison.groups for run in group.runs)
    for group in comparison.groups:
        cells = [_stream(run, targets=targets) for run in group.runs]
        if group.guidance is None and all(each == cells[0] for each in cells):
            rows.append(Row(group.label, cells[0], group.objective))
        elif group.guidance is None:
            rows += [Row.of(run, each) for run, each in zip(group.runs, cells, strict=True)]
    return Table(
        "What each run was trained on",
        "Tags: the share of control tokens that are aligned (with quantiles: the best). Threshold: the highest score "
        "that counts as aligned, for a sentence (filtering: for a document). Effective: the effective sample size of "
        "weighted sentences, as a share of them.",
        [
            "documents",
            "filtered",
            "held out",
            "tags aligned",
            "threshold",
            *(["effective"] if targets else []),
            "tokens in the stream",
            "tokens trained on",
            "epochs",
            "parameters",
        ],
        rows,
    )


def _stream(run: LoadedRun, *, targets: bool) -> list[Cell]:
    stream, horizon, threshold = run.facts.stream, run.facts.horizon, run.facts.threshold
    left_out = stream.get("documents_left_out") or {}
    tags = stream.get("tags") or {}
    total = sum(tags.values()) - tags.get("dropped", 0)
    dropped = f"{percent(tags.get('dropped', 0) / sum(tags.values()))} dropped" if total else ""
    tokens = trained_tokens(run)
    weights = run.facts.targets
    effective = NONE if weights is None else percent(weights.effective_share)
    return [
        _count(stream.get("documents_used")),
        _count(left_out.get("filtered")),
        _count(left_out.get("held_out")),
        Cell.share(next(iter(tags.values())), total, dropped) if total else Cell(NONE),
        Cell(number(threshold.value), threshold.origin.partition(":")[0], threshold.value) if threshold else Cell(NONE),
        *([Cell(effective, order=None if weights is None else weights.effective_share)] if targets else []),
        _count(stream.get("tokens")),
        Cell(short_count(tokens), order=tokens),
        Cell.plain(horizon.epochs),
        Cell(short_count(run.facts.model.parameters), order=run.facts.model.parameters),
    ]


def trained_tokens(run: LoadedRun) -> int:
    """The number of tokens that a run was trained on."""
    return run.facts.step * run.facts.horizon.batch_size * run.facts.model.context_length


def short_count(value: float) -> str:
    """Format a large number with a unit: 983 k, 1.09 M, 3.3 B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


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


def _leakage(runs: Sequence[LoadedRun]) -> Cell:
    each = [run.report.leakage for run in runs]
    known = [leakage for leakage in each if leakage is not None and leakage.samples is not None]
    samples = groups.over_seeds([leakage.samples for leakage in known])
    if samples is None or len(known) < len(each):
        return Cell("no tags")
    tokens = groups.over_seeds([leakage.tokens for leakage in known])
    return Cell(percent(samples.value), "" if tokens is None else f"{percent(tokens.value)} of tokens", samples.value)


def _count(value: Any) -> Cell:
    return Cell.count(value) if isinstance(value, int) else Cell(NONE)
