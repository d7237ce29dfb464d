"""A signal at the worst moment: where Python makes another exception of the one that the handler raises."""

import re
import signal
from pathlib import Path


class _Member:
    def __init__(self, number: signal.Signals) -> None:
        self._number = number

    def __set_name__(self, owner: type, name: str) -> None:
        signal.raise_signal(self._number)


def interrupted_in_a_class(number: signal.Signals) -> None:
    """Be interrupted while a class is made: a `RuntimeError` in Python 3.11. An import of pandas is full of them."""
    type("Made", (), {"member": _Member(number)})


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)
