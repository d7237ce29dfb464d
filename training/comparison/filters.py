"""The filters of the page: which choices they offer, and to which choices a row belongs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from training.comparison.groups import Group
from training.comparison.load import Comparison, trained_on
from training.comparison.run import LoadedRun
from training.comparison.section import Section

_TITLES = {"task": "Task", "objective": "Objective", "group": "Variant", "seed": "Seed", "scorer": "Scored by"}


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
        self._by_objective = True
        # A run and its group may have equal labels, but not a run and the group of another objective.
        self._choices = {(group.label, group.objective): _of(group, group.runs) for group in comparison.groups}
        for group in comparison.groups:
            for run in group.runs:
                self._choices.setdefault((run.label, run.objective), _of(group, [run]))
        rows = [self.choices_of(*row) for row in dict.fromkeys(_rows(sections))]
        offered = {name: list(dict.fromkeys(choices[name] for choices in rows if name in choices)) for name in _TITLES}
        offered["seed"].sort(key=int)
        if all(len(group.runs) == 1 for group in comparison.groups):
            del offered["seed"]
        if len(offered["group"]) <= len(offered["objective"]):
            del offered["group"]  # choosing among them is choosing an objective
        if len({(choices.get("task"), choices.get("scorer")) for choices in self._choices.values()}) == len(
            offered["task"]
        ):
            del offered["scorer"]  # each task has its own
        self.offered = [Filter(name, _TITLES[name], choices) for name, choices in offered.items() if len(choices) > 1]
        names = {each.name for each in self.offered}
        self._choices = {
            row: {name: choice for name, choice in choices.items() if name in names}
            for row, choices in self._choices.items()
        }
        self._by_objective = "objective" in names

    def choices_of(self, label: str, objective: str) -> dict[str, str]:
        """The choice of each filter to which a row belongs; a filter that does not concern it is left out."""
        found = self._choices.get((label, objective))
        return ({"objective": objective} if self._by_objective else {}) if found is None else found


def _of(group: Group, runs: Sequence[LoadedRun]) -> dict[str, str]:
    """The choices of a row about all or one of a group's runs; that of the seed only if there is one."""
    choices = {
        "task": trained_on(runs[0]),
        "objective": group.objective,
        "group": group.label,
        "scorer": runs[0].report.column,
    }
    return choices | ({"seed": str(runs[0].config.training.seed)} if len(runs) == 1 else {})


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
