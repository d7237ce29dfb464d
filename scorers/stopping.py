"""A signal's request to stop, as it makes its way out of whatever code it interrupts."""

from typing import TypeVar

from scorers.errors import StoppedError

Interruption = TypeVar("Interruption", bound=BaseException)


class StopRequest(BaseException):  # not an `Exception`: libraries catch those and forget them
    """Raised by a signal wherever the main thread is; its message is the signal's name.

    Whoever installed the handler turns what comes out into a `StoppedError`, by `behind`.
    """


def behind(error: BaseException | None, kind: type[Interruption]) -> Interruption | None:
    """The interruption that made `error`: itself, what it was raised from, or what was being handled then.

    Code that is interrupted may raise an error of its own out of it. Python does where a class is being made (a
    `RuntimeError` around whatever `__set_name__` raises); libraries do where an import does not come to its end.

    Returns:
        The first of the chain that is of this kind; None where there is none.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, kind):
            return error
        seen.add(id(error))
        error = error.__cause__ if error.__cause__ is not None else error.__context__
    return None


def is_stop(error: BaseException) -> bool:
    """Whether `error` ends the work because somebody asked, or because a newer run has taken over."""
    return isinstance(error, StoppedError) or behind(error, StopRequest) is not None
