"""Collect the problems of a dataset; many rows with the same defect count as one problem."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from scorers.amounts import format_count


@dataclass(frozen=True)
class Problem:
    """A problem with a file; contains no text of the corpus.

    Attributes:
        path: path of the file, relative to the dataset.
        what: the description, worded to follow the path.
        stray: true if the file should not exist and `phf gc` would remove it; false if it is damaged or lost.
    """

    path: str
    what: str
    stray: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass
class Findings:
    """Collects problems in the order in which they are found; rows with the same defect are merged into one problem."""

    _problems: list[Problem] = field(default_factory=list)
    _in_rows: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)

    def add(self, path: str, what: str) -> None:
        """Add a problem with a file."""
        self._problems.append(Problem(path, what))

    def add_stray(self, path: str, what: str) -> None:
        """Add a file that should not exist."""
        self._problems.append(Problem(path, what, stray=True))

    def add_rows(self, path: str, what: str, rows: Sequence[str]) -> None:
        """Add a problem with rows of a file; `rows` are their keys, `source#position`."""
        if rows:
            count, first = self._in_rows.get((path, what), (0, rows[0]))
            self._in_rows[path, what] = (count + len(rows), first)

    @property
    def problems(self) -> list[Problem]:
        """All problems: those of files, then those of rows."""
        return self._problems + [
            Problem(path, f"{what} ({format_count(count, 'row')}, the first is {first})")
            for (path, what), (count, first) in self._in_rows.items()
        ]
