"""What is wrong with a dataset, one line a kind of damage, however many rows have it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from scorers.amounts import count_of


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, without any text of the corpus.

    Attributes:
        path: of the file, relative to the dataset.
        what: is wrong with it.
        stray: it should not be there, and `phf gc` would remove it; otherwise it is damaged or lost.
    """

    path: str
    what: str
    stray: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass
class Findings:
    """Collects problems in the order in which they are found; many rows with the same one count as one problem."""

    _problems: list[Problem] = field(default_factory=list)
    _in_rows: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)

    def add(self, path: str, what: str) -> None:
        """Something is wrong with a file."""
        self._problems.append(Problem(path, what))

    def add_stray(self, path: str, what: str) -> None:
        """A file should not be there."""
        self._problems.append(Problem(path, what, stray=True))

    def add_rows(self, path: str, what: str, rows: Sequence[str]) -> None:
        """Something is wrong with some rows of a file; `rows` are their keys, `source#position`."""
        if rows:
            count, first = self._in_rows.get((path, what), (0, rows[0]))
            self._in_rows[path, what] = (count + len(rows), first)

    @property
    def problems(self) -> list[Problem]:
        """Everything found: problems of files, then of rows."""
        return self._problems + [
            Problem(path, f"{what} ({count_of(count, 'row')}, the first is {first})")
            for (path, what), (count, first) in self._in_rows.items()
        ]
