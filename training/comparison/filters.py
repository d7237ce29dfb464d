"""The filters of the page: which choices they offer, and to which choices a row belongs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from training.comparison.load import Comparison
from training.comparison.section import Section


@dataclass(frozen=True)
class Filter:
    """A filter of the tables and samples.

    Attributes:
        name: of the attribute of a row with its choice.
        title: for readers.
        choices: in the order in which the page shows them; at least two.
    """

    name: str
    title: str
    choices: Sequence[str]


class Filters:
    """The filters by which the rows of a page differ; one with a single choice is left out."""

    def __init__(self, comparison: Comparison, sections: Sequence[Section]) -> None:
        groups = comparison.groups
        # A run and its group may have equal labels, but not a run and the group of another objective.
        self._places = {(group.label, group.objective): (group.label, group.runs[0].report.column) for group in groups}
        for group in groups:
            for run in group.runs:
                self._places.setdefault((run.label, run.objective), (group.label, run.report.column))
        rows = list(dict.fromkeys(_rows(sections)))
        objectives = list(dict.fromkeys(objective for _, objective in rows))
        places = [self._places[row] for row in rows if row in self._places]
        labels, columns = (list(dict.fromkeys(each)) for each in (zip(*places, strict=True) if places else ([], [])))
        several = any(len(group.runs) > 1 for group in groups)
        offered = [
            Filter("objective", "Objective", objectives),
            # With one group of each objective, choosing among them is choosing an objective.
            Filter("group", "Seeds of" if several else "Run", labels if len(labels) > len(objectives) else []),
            Filter("scorer", "Scored by", columns),
        ]
        self.offered = [each for each in offered if len(each.choices) > 1]

    def choices_of(self, label: str, objective: str) -> dict[str, str]:
        """The choice of each filter to which a row belongs; a filter that does not concern it is left out."""
        choices = {"objective": objective}
        if (label, objective) in self._places:
            choices["group"], choices["scorer"] = self._places[label, objective]
        names = [each.name for each in self.offered]
        return {name: choice for name, choice in choices.items() if name in names}


def _rows(sections: Sequence[Section]) -> Iterator[tuple[str, str]]:
    """The label and objective of every row that is about a run."""
    for section in sections:
        for table in section.tables:
            for row in table.rows:
                if row.objective is not None:
                    yield row.label, row.objective
        for examples in section.examples:
            for example in examples.examples:
                yield example.label, example.objective
