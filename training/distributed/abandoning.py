"""Run work on rank 0 that is abandoned when any rank is asked to stop, so that a run stops within its grace period."""

from collections.abc import Callable
from typing import TypeVar

from scorers.stopping import StopRequest, find_interruption
from training.distributed.world import World

Value = TypeVar("Value")


class Abandoned(StopRequest):
    """Raised inside work to abandon it."""


def unless_stopped(
    world: World, stop_requested: Callable[[], bool], work: Callable[[Callable[[], None]], Value]
) -> Value | None:
    """Run `work` on rank 0 while the others wait, and return its result on every rank; None if it was abandoned.

    Work is abandoned when any rank is asked to stop before it is done. Called on every rank, with the same result. If
    `work` raises anything else, the other ranks exit as in `World.on_main`.

    Args:
        world: the ranks.
        stop_requested: whether this rank was asked to stop.
        work: takes a function that it must call every few seconds, which raises `Abandoned` if another rank was asked
            to stop. A signal to rank 0 may raise it anywhere. The result must be picklable.
    """

    def check_stop() -> None:
        _, stop = world.any(False, stop_requested())
        if stop:
            raise Abandoned

    def attempt() -> Value | None:
        try:
            try:
                check_stop()
                return work(check_stop)
            finally:
                world.any(True, stop_requested())
        except BaseException as error:
            # A second signal, to stop at once, raises a request of another class: let it through.
            if type(find_interruption(error, StopRequest)) is not Abandoned:
                raise
            return None

    over = world.is_main
    while not over:
        # A signal to this rank is only noticed between two rounds.
        over, _ = world.any(False, stop_requested())
    return world.on_main(attempt)
