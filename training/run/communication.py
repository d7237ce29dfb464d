"""How long a step waits for other ranks: the collectives that DeepSpeed asks for, each on the stopwatch of the step."""

from collections.abc import Callable
from functools import partial
from typing import Any

from training.run.distributed import import_deepspeed
from training.run.speed import Stopwatch

_COLLECTIVES = (
    "all_reduce",
    "all_reduce_coalesced",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "broadcast",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_base",
    "all_gather_coalesced",
)


def time_collectives(watch: Stopwatch) -> Callable[[], None]:
    """Put the collectives of DeepSpeed's backend on a stopwatch, until what is returned is called.

    Of one that runs beside the computation, what counts is the asking, and the waiting for it. On a GPU it is what the
    stream of the computation waits.

    Args:
        watch: of the steps.
    """
    import_deepspeed()
    from deepspeed.comm import comm

    backend = comm.cdb
    own = [name for name in _COLLECTIVES if hasattr(backend, name)]
    for name in own:
        setattr(backend, name, partial(_timed, getattr(backend, name), watch))

    def restore() -> None:
        for name in own:
            backend.__dict__.pop(name, None)

    return restore


def _timed(collective: Callable[..., Any], watch: Stopwatch, *arguments: Any, **options: Any) -> Any:
    with watch.communicating():
        handle = collective(*arguments, **options)
    return handle if handle is None else _Waited(handle, watch)


class _Waited:
    """A collective that was begun, whose waiting is timed."""

    def __init__(self, work: Any, watch: Stopwatch) -> None:
        self._work = work
        self._watch = watch

    def wait(self, *arguments: Any) -> Any:
        """See torch's `Work.wait`."""
        with self._watch.communicating():
            return self._work.wait(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
