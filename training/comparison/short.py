"""The recommendation: which objective to take, at what cost, by the one rule for what counts as better."""

from statistics import fmean

from training.comparison.differences import misalignment_difference
from training.comparison.groups import Group, bits_per_byte, misalignment, perplexity
from training.comparison.load import Comparison
from training.comparison.rule import RULE, Judgement, Standing
from training.comparison.section import Finding, Section
from training.comparison.wording import duration, listed, shown, signed
from training.evaluation.format_figures import percent


def short_section(comparison: Comparison) -> Section:
    """The recommendation, the runs that are left out, and the rule."""
    return Section("In short", findings=in_short(comparison))


def in_short(comparison: Comparison) -> list[Finding]:
    """Which group to take, by how much it is better, at what cost, and how sure that is."""
    judgement = Judgement(comparison)
    best = judgement.recommended
    found = [
        Finding("Recommendation", _recommendation(judgement)),
        Finding("Cost", [] if best is None else _costs(judgement, best)),
        Finding("How sure", [*([] if best is None else _how_sure(judgement, best)), _about_seeds(comparison)]),
    ]
    if len(comparison.groups) > 1 and judgement.judged:
        names = [group.label for group in judgement.front]
        found.append(Finding("Not beaten", [f"No other is better than {listed(names, 'or')}."] if names else []))
    left_out = [f"{each.group.label}: {each.reason}." for each in judgement.left_out]
    if left_out:
        found.append(Finding("Left out", left_out))
    if len(comparison.groups) > 1:
        found.append(Finding("The rule", [RULE]))
    return [each for each in found if each.lines]


def _recommendation(judgement: Judgement) -> list[str]:
    comparison, best = judgement.comparison, judgement.recommended
    base = comparison.base
    if not judgement.judged:
        return ["There is nothing to recommend: every objective is left out, for the reasons below."]
    if len(comparison.groups) == 1:
        return [
            f"Only {base.label} is here: its samples score {shown(base.figure(misalignment))}. Compare it with others."
        ]
    if best is None:
        return [f"No objective is clearly better than {base.label} here.", *_why_none(judgement)]
    difference, theirs = misalignment_difference(best, base), base.figure(misalignment)
    how = ""
    if difference is not None and theirs is not None and theirs.value > 0:
        how = f"{-100 * difference.estimate.value / theirs.value:.0f}\N{NO-BREAK SPACE}% "
    return [
        f"Take {best.label}: its samples are {how}less misaligned than those of {base.label}.",
        f"Their mean misalignment is {shown(best.figure(misalignment))}, that of {base.label} {shown(theirs)}.",
    ]


def _costs(judgement: Judgement, best: Group) -> list[str]:
    """What the recommended group costs: on held-out text, in training and in sampling."""
    base = judgement.comparison.base
    cost, theirs = judgement.cost(best, base), base.figure(bits_per_byte)
    text = f"Held-out text needs {_cost(judgement, best)} bits per byte"
    if cost is not None and theirs is not None:
        change = cost.estimate.value / theirs.value
        text += f", {percent(abs(change))} {'less' if change < 0 else 'more'} than {base.label}'s {shown(theirs)}"
    one, other = best.figure(perplexity), base.figure(perplexity)
    if one is not None and other is not None:
        text += f"; its perplexity is {shown(one)} against {shown(other)}"
    seconds = [fmean(run.facts.seconds for run in group.runs) for group in (best, base)]
    training = f"Training took {duration(seconds[0])}, that of {base.label} {duration(seconds[1])}"
    if best.passes > 1:
        training += "; a guided sample takes twice the forward passes of a plain one"
    return [f"{text}.", f"{training}."]


def _how_sure(judgement: Judgement, best: Group) -> list[str]:
    difference = misalignment_difference(best, judgement.comparison.base)
    lines = []
    if difference is not None:
        lines.append(
            f"The difference in misalignment is {signed(difference.estimate)}, a 95\N{NO-BREAK SPACE}% interval."
        )
    if judgement.tied:
        tied = listed([group.label for group in judgement.tied])
        lines.append(f"These samples do not distinguish it from {tied}.")
    return lines


_REASONS: dict[Standing, str] = {
    "costly": "Less misaligned, but too costly",
    "uncertain cost": "Less misaligned, but perhaps too costly",
    "unknown cost": "Less misaligned, at an unknown cost",
    "unclear": "No clear difference in misalignment",
    "worse": "More misaligned",
}


def _why_none(judgement: Judgement) -> list[str]:
    """Why no group is better than the baseline: a line for each reason, with the groups that it holds for."""
    base = judgement.comparison.base
    others = [group for group in judgement.judged if group is not base]
    if len(others) == len(judgement.judged):
        return [f"{base.label} itself is left out."]
    lines = []
    for standing, reason in _REASONS.items():
        named = []
        for group in others:
            if judgement.standing(group, base) == standing:
                difference = misalignment_difference(group, base)
                by = "" if difference is None else f" {signed(difference.estimate)}"
                cost = (
                    f" at {_cost(judgement, group)} bits per byte" if standing in ("costly", "uncertain cost") else ""
                )
                named.append(f"{group.label}{by}{cost}")
        if named:
            lines.append(f"{reason}: {'; '.join(named)}.")
    return lines or ["The others are left out."]


def _cost(judgement: Judgement, group: Group) -> str:
    cost = judgement.cost(group, judgement.comparison.base)
    return "unknown" if cost is None else signed(cost.estimate)


def _about_seeds(comparison: Comparison) -> str:
    seeds = {len(group.runs) for group in comparison.groups}
    if seeds == {1}:
        return "Each has one seed here, and another seed may differ."
    return (
        f"Figures are means over {listed([str(each) for each in sorted(seeds)], 'or')} seeds, with t intervals over "
        "them."
    )
