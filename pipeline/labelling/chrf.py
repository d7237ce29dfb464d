"""chrF: how much of a text another one keeps, by the character n-grams that they share."""

from collections import Counter

_ORDERS = range(1, 7)
_BETA = 2  # recall weighs twice


def chrf(text: str, original: str) -> float:
    """The chrF2 of a text against its original, in [0, 1] (Popović 2015), without white space, case-sensitive.

    1 for the same text; orders of n-grams for which one of the texts is too short are left out, as in sacreBLEU.
    Takes time and memory linear in the texts.
    """
    one, other = "".join(text.split()), "".join(original.split())
    precisions, recalls = [], []
    for order in _ORDERS:
        if len(one) < order or len(other) < order:
            break
        found, wanted = (Counter(each[at : at + order] for at in range(len(each) - order + 1)) for each in (one, other))
        shared = sum(min(count, wanted[gram]) for gram, count in found.items() if gram in wanted)
        precisions.append(shared / found.total())
        recalls.append(shared / wanted.total())
    if not any(precisions):
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return (1 + _BETA**2) * precision * recall / (_BETA**2 * precision + recall)
