"""The recommendation: which objective to take, at what cost, by the one rule for what counts as better."""

from training.comparison.differences import misalignment_difference
from training.comparison.groups import Group, bits_per_byte, misalignment, perplexity
from training.comparison.load import Comparison
from training.comparison.rule import RULE, Judgement
from training.comparison.section import Finding, Section
from training.comparison.wording import listed, shown, signed


def short_section(comparison: Comparison) -> Section:
    """The recommendation, the runs that are left out, and the rule."""
    return Section("In short", findings=in_short(comparison))


def in_short(comparison: Comparison) -> list[Finding]:
    """The recommendation in sentences."""
    judgement = Judgement(comparison)
    found = [Finding("Recommendation", [_recommendation(judgement), _about_seeds(comparison)])]
    if len(comparison.groups) > 1 and judgement.judged:
        names = [group.label for group in judgement.front]
        found.append(Finding("Not beaten", [f"No other is better than {listed(names, 'or')}."] if names else []))
    left_out = [f"{each.group.label}: {each.reason}." for each in judgement.left_out]
    if left_out:
        found.append(Finding("Left out", left_out))
    if len(comparison.groups) > 1:
        found.append(Finding("The rule", [RULE]))
    return [each for each in found if each.lines]


def _recommendation(judgement: Judgement) -> str:
    comparison, best = judgement.comparison, judgement.recommended
    base = comparison.base
    if not judgement.judged:
        return "There is nothing to recommend: every objective is left out, for the reasons below."
    if len(comparison.groups) == 1:
        return (
            f"Only {base.label} is here: its samples score {shown(base.figure(misalignment))}. Compare it with others."
        )
    if best is None:
        reasons = [_why_not(judgement, group) for group in judgement.judged if group is not base]
        if all(group is not base for group in judgement.judged):
            reasons = [f"{base.label} itself is left out"]
        return (
            f"No objective is clearly better than {base.label} here: {'; '.join(reasons) or 'the others are left out'}."
        )
    text = (
        f"Take {best.label}: its samples have a mean misalignment of {shown(best.figure(misalignment))}, those of "
        f"{base.label} {shown(base.figure(misalignment))}. Its held-out text needs {_cost(judgement, best)} bits per "
        f"byte against {base.label}'s {shown(base.figure(bits_per_byte))}"
    )
    one, other = best.figure(perplexity), base.figure(perplexity)
    if one is not None and other is not None:
        text += f", a perplexity of {shown(one)} against {shown(other)}"
    if judgement.tied:
        text += f". The samples do not distinguish it from {listed([group.label for group in judgement.tied])}"
    return f"{text}."


def _why_not(judgement: Judgement, group: Group) -> str:
    base = judgement.comparison.base
    difference, standing = misalignment_difference(group, base), judgement.standing(group, base)
    by = "" if difference is None else f" by {signed(difference.estimate)}"
    cost = f"at {_cost(judgement, group)} bits per byte"
    return {
        "unclear": f"the misalignment of {group.label} does not clearly differ, {by.removeprefix(' by ')}",
        "worse": f"{group.label} is more misaligned{by}",
        "costly": f"{group.label} is less misaligned{by}, but costs too much, {cost}",
        "uncertain cost": f"{group.label} is less misaligned{by}, but may cost too much, {cost}",
        "unknown cost": f"{group.label} is less misaligned{by}, but its cost on the same held-out text is unknown",
    }.get(judgement.standing(group, base), f"{group.label}: {standing}")


def _cost(judgement: Judgement, group: Group) -> str:
    cost = judgement.cost(group, judgement.comparison.base)
    return "unknown" if cost is None else signed(cost.estimate)


def _about_seeds(comparison: Comparison) -> str:
    seeds = {len(group.runs) for group in comparison.groups}
    if seeds == {1}:
        return "Each has one seed here, and another seed may differ."
    return (
        f"These are means over {listed([str(each) for each in sorted(seeds)], 'or')} seeds, with t intervals over them."
    )
