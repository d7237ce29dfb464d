"""The section about guidance: the figures of each scale of a sweep, and the recommended one."""

from training.comparison.equal_compute import usable_sweep
from training.comparison.load import Comparison
from training.comparison.run import LoadedRun
from training.comparison.section import Cell, Finding, Row, Section, Table
from training.evaluation.guidance_wording import WHY_NOT, recommendation
from training.evaluation.recommended_guidance import RULE
from training.runs.guidance_report import GuidanceReport, ScaleFacts


def guidance_section(comparison: Comparison) -> Section | None:
    """The guidance sweeps of the runs; None without one."""
    swept = [(run, sweep) for run in comparison.runs if (sweep := usable_sweep(run)) is not None]
    if not swept:
        return None
    return Section(
        "Guidance",
        note="Guidance samples a conditional model away from what it writes after its worst tag: g = 1 is plain "
        f"sampling, larger values steer harder, and too large ones make text repeat itself. {RULE}",
        findings=[Finding(run.label, [recommendation(sweep)]) for run, sweep in swept],
        tables=[_table(run, sweep) for run, sweep in swept],
    )


def _table(run: LoadedRun, sweep: GuidanceReport) -> Table:
    reference = sweep.reference
    note = f"{sweep.config.num_samples:,} samples a scale, drawn with the same seed, with 95 % intervals."
    if reference is not None:
        note += f" Perplexity of a token of the samples under {reference.name} ({reference.objective})."
    columns = ["misalignment, mean", "hit rate", "distinct-2", "length in tokens"]
    return Table(
        f"{run.label}, by guidance scale",
        note,
        [*columns, *([] if reference is None else ["perplexity"]), "note"],
        [
            Row(
                f"g = {each.scale:g}",
                _cells(sweep, each),
                run.facts.objective,
                guided=each.scale != 1,
                order=each.scale,
            )
            for each in sweep.scales
        ],
        heading="scale",
    )


def _cells(sweep: GuidanceReport, facts: ScaleFacts) -> list[Cell]:
    samples = facts.samples
    note = WHY_NOT[facts.ruled_out] if facts.ruled_out else ""
    if sweep.recommended is not None and sweep.recommended.scale == facts.scale:
        note = "recommended"
    return [
        Cell.of(samples.misalignment),
        Cell.of(samples.hit_rate, share=True),
        Cell.plain(samples.distinct_2),
        Cell.of(samples.tokens),
        *([] if sweep.reference is None else [Cell.of(facts.perplexity)]),
        Cell(note),
    ]
