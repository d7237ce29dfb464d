"""Turn failures into values, so that one document that cannot be scored does not fail the others."""

import time
from collections.abc import Callable
from typing import TypeVar

from scorers.contract import Document, ScoringError
from scorers.deadline import DeadlineExceededError, deadline
from scorers.describe_error import describe

Result = TypeVar("Result")

# A document gets its deadline once, and once more for every so many characters.
_CHARACTERS_A_DEADLINE = 50_000


def allowed_seconds(deadline_s: float, characters: int) -> float:
    """Return the seconds that a document may take: the deadline, and as much again for every 50,000 characters."""
    return deadline_s * (1 + characters / _CHARACTERS_A_DEADLINE)


def attempt(function: Callable[[Document], Result], document: Document, seconds: float) -> Result | ScoringError:
    """Return `function(document)`, or a `ScoringError`: `deadline` after its time, else `scorer-error`.

    The time is `allowed_seconds`, so that a document does not fail for its length alone. A `MemoryError` counts as a
    failure of the document: CPython's parser raises it on code nested too deeply.
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
    except Exception as error:  # noqa: BLE001 - a library may raise anything on strange input
        if time.monotonic() - began >= allowed:
            # A library that the deadline interrupted may raise an exception of its own.
            return late
        return ScoringError("scorer-error", describe(error))
