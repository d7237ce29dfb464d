"""Work of rank 0 that ends when any rank is asked to stop, so that a run does not outlast its time of grace."""

from collections.abc import Callable
from typing import TypeVar

from scorers.stopping import StopRequest, behind
from training.distributed.world import World

Value = TypeVar("Value")


class Abandoned(StopRequest):
    """Makes its way out of work that is given up."""


def unless_stopped(
    world: World, asked: Callable[[], bool], work: Callable[[Callable[[], None]], Value]
) -> Value | None:
    """Run `work` on rank 0 while the others wait, and return its result on every rank; None where it was given up.

    It is where a rank is asked to stop, unless it has come to its end by then. Every rank calls this, and gets the
    same. Where `work` raises anything else, the other ranks leave as with `World.on_main`.

    Args:
        world: the ranks.
        asked: whether this rank was asked.
        work: is handed a function to call every few seconds, which finds out whether another rank was asked, and
            raises `Abandoned` if so. A signal to rank 0 may raise it anywhere. What it returns must be picklable.
    """

    def look() -> None:
        _, stop = world.any(False, asked())
        if stop:
            raise Abandoned

    def attempt() -> Value | None:
        try:
            try:
                look()
                return work(look)
            finally:
                world.any(True, asked())
        except BaseException as error:
            # A second signal, which does not want to wait, is a request that is none of ours.
            if type(behind(error, StopRequest)) is not Abandoned:
                raise
            return None

    over = world.is_main
    while not over:
        # Between two rounds this rank notices a signal, which it cannot within one.
        over, _ = world.any(False, asked())
    return world.on_main(attempt)
