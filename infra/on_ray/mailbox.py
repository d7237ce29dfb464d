"""The mailbox between the driver and the ranks of a run on Ray: an actor that both can reach."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

STDOUT, STDERR = 1, 2


@dataclass
class Messages:
    """The messages of the ranks to the driver.

    Attributes:
        output: what ranks printed since the driver last collected it: stream and bytes, in order.
        started: whether any rank has ever been started.
        running: ranks that are running.
        losses: for each loss of ranks, the exit status by rank (negative for a signal), None for one whose worker or
            machine is gone.
        ends: exit status by rank of those that ended deliberately since the last loss.
        problems: by node, the problem that keeps ranks from starting there.
    """

    output: list[tuple[int, bytes]] = field(default_factory=list)
    started: bool = False
    running: set[int] = field(default_factory=set)
    losses: list[Mapping[int, int | None]] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


class Mailbox:
    """Holds the messages of both sides; its methods never block. The driver makes it an actor."""

    def __init__(self) -> None:
        self._signals: list[int] = []
        self._messages = Messages()

    # Called by ranks.

    def signals(self) -> list[int]:
        """Return the signals that the driver has received so far, in order."""
        return self._signals

    def add_output(self, output: list[tuple[int, bytes]]) -> list[int]:
        """Add what a rank printed, and return the signals so far."""
        self._messages.output += output
        return self._signals

    def report_start(self, rank: int) -> None:
        """Report that a rank is about to start."""
        self._messages.started = True
        self._messages.running.add(rank)

    def report_end(self, rank: int, status: int) -> None:
        """Report that a rank has ended deliberately."""
        self._messages.running.discard(rank)
        self._messages.ends[rank] = status

    def report_problem(self, node: str, problem: str) -> None:
        """Report a problem of a node; no rank may start."""
        self._messages.problems[node] = problem

    def has_problems(self) -> bool:
        """Return whether any node has reported a problem."""
        return bool(self._messages.problems)

    def report_losses(self, losses: Mapping[int, int | None]) -> None:
        """Report that Ray Train has lost ranks, and ends the others."""
        self._messages.losses.append(losses)
        self._messages.running.clear()
        self._messages.ends.clear()

    # Called by the driver.

    def add_signal(self, number: int) -> None:
        """Pass a signal on to every rank."""
        self._signals.append(number)

    def collect(self) -> Messages:
        """Return all messages; output is returned once."""
        messages = self._messages
        self._messages = replace(messages, output=[])
        return messages
