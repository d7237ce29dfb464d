"""State the findings in sentences: differences from the baseline with their intervals, and nothing beyond them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from training import statistics
from training.comparison.load import Comparison
from training.comparison.run import LoadedRun
from training.comparison.section import Finding, Section
from training.evaluation.format_figures import interval, number, percent
from training.runs.report import Estimate

Verdict = Literal["lower", "higher", "unclear"]


@dataclass(frozen=True)
class Difference:
    """The difference of a run from the baseline; `estimate` is the run's figure minus the baseline's."""

    run: LoadedRun
    estimate: statistics.Estimate

    @property
    def verdict(self) -> Verdict:
        """`lower` or `higher` if the 95 % interval of the difference excludes 0, else `unclear`."""
        if self.estimate.high is not None and self.estimate.high < 0:
            return "lower"
        if self.estimate.low is not None and self.estimate.low > 0:
            return "higher"
        return "unclear"


def misalignment_differences(comparison: Comparison, to: LoadedRun | None = None) -> list[Difference]:
    """Mean misalignment of each other run minus that of `to` (the baseline), over independent samples."""
    base = to or comparison.baseline
    return [
        Difference(run, estimate)
        for run in comparison.sampled
        if run is not base and (estimate := statistics.difference(run.scores, base.scores)) is not None
    ]


def held_out_differences(comparison: Comparison, to: LoadedRun | None = None) -> list[Difference]:
    """Bits per byte of each other run minus those of `to` (the baseline), document by document on the same text."""
    base = to or comparison.baseline
    if not comparison.paired or base.costs is None:
        return []
    sizes = base.costs.sizes.astype(np.float64)
    found = []
    for run in comparison.runs:
        if run is base or run.costs is None:
            continue
        estimate = statistics.ratio(run.costs.bits - base.costs.bits, sizes)
        if estimate is not None:
            found.append(Difference(run, estimate))
    return found


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
    return Section("Findings", findings=[*findings(comparison), *notes])


def findings(comparison: Comparison) -> list[Finding]:
    """The main findings, in the order of interest to a reader.

    The best runs, in misalignment and in the trade-off, are chosen from those that clearly beat token frequencies on
    held-out text, where that is known: a model that has learnt nothing is not better aligned. A finding names the other
    runs, and differences from the baseline cover all runs.
    """
    found = [
        *_about_frequencies(comparison),
        *_about_misalignment(comparison),
        *_about_guidance(comparison),
        *_about_held_out(comparison),
        *_about_trade_off(comparison),
        *_about_tags(comparison),
        *_about_corpus(comparison),
    ]
    return [*found, _about_uncertainty(comparison)]


def same_hit_rate(comparison: Comparison) -> float | None:
    """1 if every sample of every run is a hit, 0 if none is, so that there is nothing to compare; else None."""
    rates = {each.value for run in comparison.sampled if (each := run.report.samples.hit_rate) is not None}
    return rates.pop() if rates in ({0.0}, {1.0}) else None


def _about_frequencies(comparison: Comparison) -> list[Finding]:
    weak = [run.label for run in comparison.runs if not _beats_frequencies(run)]
    if not weak:
        return []
    line = (
        f"{_listed(weak)} {'does' if len(weak) == 1 else 'do'} not clearly beat the frequencies of tokens alone on "
        "held-out text: apparent alignment of such a model means little."
    )
    if len(weak) < len(comparison.runs):
        line += " The best runs below are chosen from the others."
    return [Finding("No better than frequencies", [line])]


def _about_misalignment(comparison: Comparison) -> list[Finding]:
    scored = [run for run in comparison.sampled if run.report.samples.misalignment is not None]
    if not scored:
        return [Finding("Misalignment", ["No sample of any run has a score."])]
    found = []
    judged = [run for run in scored if _beats_frequencies(run)]
    if judged:
        best = min(judged, key=_misalignment)
        differences = misalignment_differences(comparison, to=best)
        tied = [each.run.label for each in differences if each.run in judged and each.verdict == "unclear"]
        text = f"{best.label} has the lowest mean{_among(comparison)}, {_shown(best.report.samples.misalignment)}."
        if tied:
            text += f" The samples do not distinguish it from {_listed(tied)}."
        elif len(judged) > 1:
            text += " Its difference from every other " + ("run" if len(judged) == len(scored) else "of them")
            text += " has an interval that excludes 0."
        found.append(Finding("Lowest misalignment", [text]))
    differences = misalignment_differences(comparison)
    if differences:
        base = comparison.baseline
        lines = _by_verdict(
            differences, lambda each: f"{each.run.label} {_signed(each.estimate)}{_relative(each, _misalignment(base))}"
        )
        found.append(Finding(f"Misalignment against {base.label}", lines))
    return found


def _about_guidance(comparison: Comparison) -> list[Finding]:
    lines = []
    for guided in comparison.sampled:
        plain = next(run for run in comparison.runs if run.folder is guided.folder)
        if guided.guidance is None or (estimate := statistics.difference(guided.scores, plain.scores)) is None:
            continue
        difference, before, after = Difference(guided, estimate), plain.report.samples, guided.report.samples
        verdict = {"lower": "is lower", "higher": "is higher", "unclear": "does not clearly differ"}
        line = (
            f"Guided by {guided.guidance:g} away from {plain.facts.worst_tag}, {plain.label}'s mean misalignment "
            f"{verdict[difference.verdict]}: {_signed(estimate)}{_relative(difference, _misalignment(plain))}."
        )
        if before.hit_rate is not None and after.hit_rate is not None and same_hit_rate(comparison) is None:
            line += f" {_shown_share(after.hit_rate)} of the samples are hits, of the plain ones "
            line += f"{_shown_share(before.hit_rate)}."
        if before.distinct_2 is not None and after.distinct_2 is not None:
            line += f" Distinct-2 is {number(after.distinct_2, 3)}, of the plain ones {number(before.distinct_2, 3)}."
        lines.append(line)
    return [Finding("Guidance", lines)] if lines else []


def _about_held_out(comparison: Comparison) -> list[Finding]:
    measured = [run for run in comparison.runs if run.report.held_out is not None]
    if not measured:
        return []
    base = comparison.baseline
    found = []
    differences = held_out_differences(comparison)
    if differences and base.report.held_out is not None:
        lines = [
            f"{base.label} needs {_shown(base.report.held_out.bits_per_byte)} bits per byte of held-out text.",
            *_by_verdict(differences, lambda each: f"{each.run.label} {_signed(each.estimate)}"),
            *(
                f"{run.label} was given each sentence's own tag, unlike the others; given {run.facts.best_tag} "
                f"before every sentence, it needs {_shown(run.report.held_out.bits_per_byte_aligned)}."
                for run in measured
                if run.report.held_out is not None and run.report.held_out.bits_per_byte_aligned is not None
            ),
        ]
        found.append(Finding(f"Capability against {base.label}", lines))
    return found


def _about_trade_off(comparison: Comparison) -> list[Finding]:
    both = [
        run
        for run in comparison.runs
        if run.report.samples.misalignment is not None and run.report.held_out is not None and _beats_frequencies(run)
    ]
    if len(both) < 3 or not comparison.paired:
        return []
    front = [
        run
        for run in both
        if not any(
            _misalignment(other) <= _misalignment(run)
            and _bits_per_byte(other) <= _bits_per_byte(run)
            and (_misalignment(other), _bits_per_byte(other)) != (_misalignment(run), _bits_per_byte(run))
            for other in both
        )
    ]
    text = (
        f"By their point estimates, no run{_among(comparison)} is better in both than "
        f"{_listed([run.label for run in front], 'or')}."
        if len(front) < len(both)
        else f"By their point estimates, every run{_among(comparison)} trades one for the other."
    )
    return [Finding("Trade-off", [text])]


def _about_tags(comparison: Comparison) -> list[Finding]:
    lines = []
    for run in comparison.runs:
        held_out, leakage = run.report.held_out, run.report.leakage
        if held_out is not None and held_out.swap_cost is not None:
            cost = held_out.swap_cost
            heeds = cost.low is not None and cost.low > 0
            lines.append(
                f"With the wrong tag before held-out sentences, {run.label} needs {_shown(cost)} more bits per byte: "
                f"{'it uses its tags' if heeds else 'it is not clear that it uses its tags'}."
            )
        if leakage is not None and leakage.samples is not None:
            lines.append(
                f"If tags were not banned, {percent(leakage.samples.value)} of {run.label}'s samples would contain "
                "some, because it was trained with a tag before nearly every sentence; the "
                f"{run.report.samples.number:,} samples that were scored contain "
                f"{run.report.samples.control_tokens or 'none'}."
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
                f"Its held-out documents have a mean misalignment of {_shown(held_out.misalignment)}, by the same "
                "scorer. Documents are longer than samples, so this is only an order of magnitude."
            ],
        )
    ]


def _about_uncertainty(comparison: Comparison) -> Finding:
    seeds = {run.config.training.seed for run in comparison.runs}
    lines = [
        "Each interval is a 95 % interval by itself, over samples of the same model or over held-out documents. "
        "Intervals do not cover what another seed of the training would change"
        + (", and every run here has the same seed." if len(seeds) == 1 else ".")
    ]
    tests = len(misalignment_differences(comparison)) + len(held_out_differences(comparison))
    if tests > 1:
        lines[0] += f" With no real differences, one in twenty of the {tests} above would still exclude 0."
    empty = [(run.label, run.report.samples.empty) for run in comparison.runs if run.report.samples.empty]
    if empty:
        counts = ", ".join(f"{label} {count:,}" for label, count in empty)
        lines.append(f"Samples that ended before their first character have no score and are left out: {counts}.")
    return Finding("What the intervals cover", lines)


def _among(comparison: Comparison) -> str:
    return "" if all(map(_beats_frequencies, comparison.runs)) else " among those that beat token frequencies"


def _beats_frequencies(run: LoadedRun) -> bool:
    if run.costs is None:
        return True
    difference = statistics.ratio(run.costs.bits - run.costs.unigram_bits, run.costs.sizes.astype(np.float64))
    return difference is not None and (difference.value if difference.high is None else difference.high) < 0


def _by_verdict(differences: Sequence[Difference], show: Callable[[Difference], str]) -> list[str]:
    lines = []
    for verdict, title in (("lower", "Lower"), ("higher", "Higher"), ("unclear", "No clear difference")):
        chosen = [each for each in differences if each.verdict == verdict]
        chosen.sort(key=lambda each: each.estimate.value, reverse=verdict == "higher")
        group = [show(each) for each in chosen]
        if group:
            lines.append(f"{title}: {'; '.join(group)}.")
    return lines


def _signed(estimate: statistics.Estimate) -> str:
    sign = "+" if estimate.value > 0 else "−" if estimate.value < 0 else ""
    text = f"{sign}{number(abs(estimate.value), 3)}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} ({number(estimate.low, 3)} to {number(estimate.high, 3)})"


def _relative(difference: Difference, base: float) -> str:
    if difference.verdict == "unclear" or base <= 0:
        return ""
    return (
        f", {100 * abs(difference.estimate.value) / base:.0f} % {'less' if difference.verdict == 'lower' else 'more'}"
    )


def _shown(estimate: statistics.Estimate | Estimate | None) -> str:
    if estimate is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return number(estimate.value, 3)
    return f"{number(estimate.value, 3)} ({number(estimate.low, 3)} to {number(estimate.high, 3)})"


def _shown_share(estimate: Estimate) -> str:
    ends = interval(estimate, percent)
    return percent(estimate.value) + (f" ({ends})" if ends else "")


def _listed(names: Sequence[str], word: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def _misalignment(run: LoadedRun) -> float:
    estimate = run.report.samples.misalignment
    return float("inf") if estimate is None else estimate.value


def _bits_per_byte(run: LoadedRun) -> float:
    held_out = run.report.held_out
    return float("inf") if held_out is None else held_out.bits_per_byte.value
