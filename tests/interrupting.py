"""A signal at the worst moment: when Python replaces the exception that the handler raises."""

import re
import signal
from pathlib import Path


class _Member:
    def __init__(self, number: signal.Signals) -> None:
        self._number = number

    def __set_name__(self, owner: type, name: str) -> None:
        signal.raise_signal(self._number)


def interrupt_in_class_creation(number: signal.Signals) -> None:
    """Raise the signal while a class is created, which Python 3.11 turns into a `RuntimeError`.

    An import of pandas creates many classes.
    """
    type("Made", (), {"member": _Member(number)})


def catches(pid: int, number: signal.Signals) -> bool:
    """Return whether a process has a handler for a signal."""
    caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)
