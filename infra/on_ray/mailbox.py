"""Where the driver and the ranks of a run on Ray leave messages for each other: an actor, which both can reach."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

STDOUT, STDERR = 1, 2


@dataclass
class News:
    """What has come since the driver last asked.

    Attributes:
        output: pieces of what ranks printed, and on which stream, in order.
        started: whether any rank has ever been started.
        running: ranks that are.
        losses: for each time that ranks were lost, the status of each (negative for a signal), None for one whose
            worker or machine is gone.
        ends: by rank, the status with which it left of its own accord, since ranks were last lost.
        refusals: by node, what is wrong there, so that no rank was started.
    """

    output: list[tuple[int, bytes]] = field(default_factory=list)
    started: bool = False
    running: set[int] = field(default_factory=set)
    losses: list[Mapping[int, int | None]] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)


class Desk:
    """Answers at once, whoever asks; made into an actor by the driver."""

    def __init__(self) -> None:
        self._signals: list[int] = []
        self._news = News()

    # What ranks do.

    def signals(self) -> list[int]:
        """What the driver was asked so far, in order."""
        return self._signals

    def print(self, output: list[tuple[int, bytes]]) -> list[int]:
        """Leave what a rank has printed; returns the signals so far."""
        self._news.output += output
        return self._signals

    def start(self, rank: int) -> None:
        """A rank is about to be started."""
        self._news.started = True
        self._news.running.add(rank)

    def end(self, rank: int, status: int) -> None:
        """A rank has left of its own accord."""
        self._news.running.discard(rank)
        self._news.ends[rank] = status

    def refuse(self, node: str, problem: str) -> None:
        """Something is wrong with a node: no rank may start."""
        self._news.refusals[node] = problem

    def refused(self) -> bool:
        """Whether any node is not fit."""
        return bool(self._news.refusals)

    def lose(self, losses: Mapping[int, int | None]) -> None:
        """Ray Train has missed ranks, and ends the others."""
        self._news.losses.append(losses)
        self._news.running.clear()
        self._news.ends.clear()

    # What the driver does.

    def signal(self, number: int) -> None:
        """Pass a signal on to every rank."""
        self._signals.append(number)

    def news(self) -> News:
        """All that was left; output is handed out once."""
        news = self._news
        self._news = replace(news, output=[])
        return news
