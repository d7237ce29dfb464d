"""State the findings in sentences: differences from the baseline with their intervals, and nothing beyond them."""

from collections.abc import Callable, Sequence
from statistics import fmean

from training.comparison.differences import (
    Difference,
    held_out_differences,
    misalignment_difference,
    misalignment_differences,
)
from training.comparison.groups import bits_per_byte, hit_rate, misalignment
from training.comparison.load import Comparison
from training.comparison.section import Finding, Section
from training.comparison.wording import listed, shown, signed
from training.evaluation.format_figures import interval, number, percent
from training.runs.report import Estimate
from training.statistics import NOT_NEGATIVE, SHARE


def finding_section(comparison: Comparison) -> Section:
    """The findings in sentences, and the caveats of the evaluations."""
    warnings: dict[str, list[str]] = {}
    for run in comparison.runs:
        for warning in run.report.warnings:
            warnings.setdefault(warning, []).append(run.label)
    every = len(comparison.runs) if len(comparison.runs) > 1 else None
    lines = [
        f"{'every run' if len(labels) == every else ', '.join(labels)}: {warning}"
        for warning, labels in warnings.items()
    ]
    notes = [Finding("Notes on the evaluations", lines)] if lines else []
    return Section("In detail", findings=[*findings(comparison), *notes])


def findings(comparison: Comparison) -> list[Finding]:
    """The findings about all runs, in the order of interest to a reader."""
    return [
        *_about_misalignment(comparison),
        *_about_guidance(comparison),
        *_about_held_out(comparison),
        *_about_tags(comparison),
        *_about_corpus(comparison),
        _about_uncertainty(comparison),
    ]


def same_hit_rate(comparison: Comparison) -> float | None:
    """1 if every sample of every run is a hit, 0 if none is, so that there is nothing to compare; else None."""
    rates = {each.value for run in comparison.sampled if (each := run.report.samples.hit_rate) is not None}
    return rates.pop() if rates in ({0.0}, {1.0}) else None


def _about_misalignment(comparison: Comparison) -> list[Finding]:
    differences = misalignment_differences(comparison)
    if not differences:
        return []
    base = comparison.base.figure(misalignment)
    lines = by_verdict(
        differences,
        lambda each: f"{each.group.label} {signed(each.estimate)}{_relative(each, base.value if base else 0)}",
    )
    return [Finding(f"Misalignment against {comparison.base.label}", lines)]


def _about_guidance(comparison: Comparison) -> list[Finding]:
    lines = []
    for guided in comparison.groups:
        plain = next(each for each in comparison.groups if each.runs[0].folder is guided.runs[0].folder)
        difference = None if guided.guidance is None else misalignment_difference(guided, plain)
        before, hits = plain.figure(misalignment), (guided.figure(hit_rate), plain.figure(hit_rate))
        if difference is None or before is None:
            continue
        verdict = {"lower": "is lower", "higher": "is higher", "unclear": "does not clearly differ"}
        line = (
            f"Guided by {guided.guidance:g} away from {plain.runs[0].facts.worst_tag}, {plain.label}'s mean "
            f"misalignment {verdict[difference.verdict]}: {signed(difference.estimate)}"
            f"{_relative(difference, before.value)}."
        )
        if hits[0] is not None and hits[1] is not None and same_hit_rate(comparison) is None:
            line += f" {_shown_share(hits[0])} of the samples are hits, of the plain ones {_shown_share(hits[1])}."
        distinct = [
            fmean(values)
            for group in (guided, plain)
            if len(values := [each for run in group.runs if (each := run.report.samples.distinct_2) is not None])
            == len(group.runs)
        ]
        if len(distinct) == 2:
            line += f" Distinct-2 is {number(distinct[0], 3)}, of the plain ones {number(distinct[1], 3)}."
        lines.append(line)
    return [Finding("Guidance", lines)] if lines else []


def _about_held_out(comparison: Comparison) -> list[Finding]:
    differences, base = held_out_differences(comparison), comparison.base.figure(bits_per_byte)
    if not differences or base is None:
        return []
    lines = [
        f"{comparison.base.label} needs {shown(base)} bits per byte of held-out text.",
        *by_verdict(differences, lambda each: f"{each.group.label} {signed(each.estimate)}"),
    ]
    for group in comparison.groups:
        aligned = group.figure(
            lambda run: run.report.held_out.bits_per_byte_aligned if run.report.held_out else None, NOT_NEGATIVE
        )
        if aligned is not None and group.guidance is None:
            lines.append(
                f"{group.label} was given each sentence's own tag, unlike the others; given "
                f"{group.runs[0].facts.best_tag} before every sentence, it needs {shown(aligned)}."
            )
    return [Finding(f"Capability against {comparison.base.label}", lines)]


def _about_tags(comparison: Comparison) -> list[Finding]:
    lines = []
    for group in comparison.groups:
        cost = group.figure(lambda run: run.report.held_out.swap_cost if run.report.held_out else None)
        leakage = group.figure(lambda run: run.report.leakage.samples if run.report.leakage else None, SHARE)
        if cost is not None and group.guidance is None:
            heeds = cost.low is not None and cost.low > 0
            lines.append(
                f"With the wrong tag before held-out sentences, {group.label} needs {shown(cost)} more bits per byte: "
                f"{'it uses its tags' if heeds else 'it is not clear that it uses its tags'}."
            )
        if leakage is not None:
            written = sum(run.report.samples.control_tokens for run in group.runs)
            lines.append(
                f"If tags were not banned, {percent(leakage.value)} of {group.label}'s samples would contain some, "
                "because it was trained with a tag before nearly every sentence; the "
                f"{sum(run.report.samples.number for run in group.runs):,} samples that were scored contain "
                f"{written or 'none'}."
            )
    return [Finding("Control tokens", lines)] if lines else []


def _about_corpus(comparison: Comparison) -> list[Finding]:
    held_out = comparison.baseline.report.held_out
    if held_out is None or held_out.misalignment is None:
        return []
    return [
        Finding(
            "The corpus",
            [
                f"Its held-out documents have a mean misalignment of {shown(held_out.misalignment)}, by the same "
                "scorer. Documents are longer than samples, so this is only an order of magnitude."
            ],
        )
    ]


def _about_uncertainty(comparison: Comparison) -> Finding:
    several = [group for group in comparison.groups if len(group.runs) > 1]
    lines = []
    if len(several) == len(comparison.groups):
        lines.append(
            "Every figure is a mean over seeds; its 95 % interval is a t interval over these means, and is wide for "
            "few seeds. It covers samples and training, not other held-out text."
        )
    elif several:
        lines.append(
            f"The figures of {listed([group.label for group in several])} are means over seeds; their 95 % intervals "
            "are t intervals over these means, and are wide for few seeds. They cover samples and training, not "
            "other held-out text."
        )
    if len(several) < len(comparison.groups):
        others = "the other" if several else "each"
        lines.append(
            f"{'The other intervals are' if several else 'Each interval is a'} 95 % "
            f"{'intervals' if several else 'interval by itself,'} over samples of the same model or over held-out "
            "documents. They do not cover what another seed of the training would change"
            + (f": {others} configurations have one seed here." if several else ": there is one seed of each here.")
        )
    tests = len(misalignment_differences(comparison)) + len(held_out_differences(comparison))
    if tests > 1:
        lines[-1] += f" Even without a real difference, each of the {tests} above excludes 0 with a probability of 5 %."
    empty = [(group.label, sum(run.report.samples.empty for run in group.runs)) for group in comparison.groups]
    if any(count for _, count in empty):
        counts = ", ".join(f"{label} {count:,}" for label, count in empty if count)
        lines.append(f"Samples that ended before their first character have no score and are left out: {counts}.")
    return Finding("What the intervals cover", lines)


def by_verdict(differences: Sequence[Difference], show: Callable[[Difference], str]) -> list[str]:
    """A line for the lower, the higher and the unclear ones."""
    lines = []
    for verdict, title in (("lower", "Lower"), ("higher", "Higher"), ("unclear", "No clear difference")):
        chosen = [each for each in differences if each.verdict == verdict]
        chosen.sort(key=lambda each: each.estimate.value, reverse=verdict == "higher")
        if chosen:
            lines.append(f"{title}: {'; '.join(map(show, chosen))}.")
    return lines


def _relative(difference: Difference, base: float) -> str:
    if difference.verdict == "unclear" or base <= 0:
        return ""
    return (
        f", {100 * abs(difference.estimate.value) / base:.0f} % {'less' if difference.verdict == 'lower' else 'more'}"
    )


def _shown_share(estimate: Estimate) -> str:
    ends = interval(estimate, percent)
    return percent(estimate.value) + (f" ({ends})" if ends else "")
