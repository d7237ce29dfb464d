"""Failures are values: one document that cannot be scored does not take the others with it."""

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from scorers.contract import Document, ScoringError
from scorers.deadline import DeadlineExceededError, deadline

Result = TypeVar("Result")

# A document has its deadline once, and once more for every so many characters.
_CHARACTERS_A_DEADLINE = 50_000


def allowed_seconds(deadline_s: float, characters: int) -> float:
    """What a document of so many characters may take: its deadline, and as much again for every 50,000 of them."""
    return deadline_s * (1 + characters / _CHARACTERS_A_DEADLINE)


def attempt(function: Callable[[Document], Result], document: Document, seconds: float) -> Result | ScoringError:
    """`function(document)`, or why it failed: reason `deadline` after its time, else `scorer-error`.

    A document's time is that of `allowed_seconds`, so that length alone fails nobody.

    A `MemoryError` counts as a failure of the document: it is what CPython's parser raises on code nested too deeply.
    """
    allowed = allowed_seconds(seconds, len(document.text))
    late = ScoringError("deadline", f"took longer than {allowed:g} s")
    began = time.monotonic()
    try:
        with deadline(allowed):
            return function(document)
    except DeadlineExceededError:
        return late
    except ScoringError as error:
        return error
    except Exception as error:  # noqa: BLE001 - a failure of a library on strange input becomes a value
        if time.monotonic() - began >= allowed:
            # Stopped in the middle, a library may raise something of its own.
            return late
        return ScoringError("scorer-error", describe(error))


def describe(error: BaseException) -> str:
    """The type of an exception and where it was raised; not its message, which may quote the document."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
