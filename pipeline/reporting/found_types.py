"""Count what the scorers of a dataset found, by type, from its spans."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.dataset import LabelledDataset
from pipeline.dataset.spans import columns_of_spans, spans_of

OTHER = "other"

_ROWS = 1024
_MOST_TYPES = 10_000  # distinct types to count before new ones join the rest
_SHOWN = 40


@dataclass(frozen=True)
class FoundType:
    """How many spans of a type there are, and in how many documents."""

    type: str
    spans: int
    documents: int


def count_types(dataset: LabelledDataset, columns: Sequence[str]) -> dict[str, list[FoundType]]:
    """Count the spans of those of the columns that have some, in constant memory.

    Returns:
        By column, the 40 most frequent types; the rest as `other`.

    Raises:
        DamagedError: the spans are not those of a scorer.
    """
    wanted = [column for column in columns if column in dataset.manifest.spans]
    if not wanted:
        return {}
    spans: dict[str, Counter[str]] = {column: Counter() for column in wanted}
    documents: dict[str, Counter[str]] = {column: Counter() for column in wanted}
    names = dict.fromkeys(name for column in wanted for name in columns_of_spans(column))
    for batch in dataset.read_batches(list(names), rows=_ROWS):
        for column in wanted:
            known = spans[column]
            for findings in spans_of(dataset, batch, column):
                found = Counter(each.type for each in findings or ())
                if len(known) >= _MOST_TYPES:
                    found = _joined(found, {*found} - known.keys())
                known.update(found)
                documents[column].update(found.keys())
    return {column: _shown(spans[column], documents[column]) for column in wanted}


def _shown(spans: Counter[str], documents: Counter[str]) -> list[FoundType]:
    order = sorted(spans, key=lambda each: (-spans[each], each))
    rest = set(order[_SHOWN:]) if len(order) > _SHOWN else set()
    # A document counts once for each of its types, also among the rest.
    spans, documents = _joined(spans, rest), _joined(documents, rest)
    shown = [each for each in order if each in spans and each != OTHER]
    return [FoundType(each, spans[each], documents[each]) for each in (*shown, *([OTHER] if OTHER in spans else []))]


def _joined(counts: Counter[str], names: set[str]) -> Counter[str]:
    joined = Counter({name: count for name, count in counts.items() if name not in names})
    if names:
        joined[OTHER] += sum(counts[name] for name in names)
    return joined
