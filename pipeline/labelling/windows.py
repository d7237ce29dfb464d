"""Check that all workers together have the memory to decode zstd files with long windows."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from pipeline.config import LabelExecution
from pipeline.corpus.compression import LONGEST_HEAD, MOST_WINDOW, window_of
from pipeline.corpus.inputs import Source
from pipeline.corpus.streams import SourceFile
from pipeline.labelling.resolve import BASE_GROUP
from pipeline.labelling.workers.memory import machine_memory
from scorers.amounts import format_count
from scorers.errors import UserError
from scorers.paths import escape_path

# The rest is for scorers, Ray and the system.
_SHARE = 0.5
_THREADS = 16


def check_windows(sources: Sequence[Source], execution: LabelExecution) -> None:
    """Refuse more workers than this machine has memory for, given the longest zstd window among the sources.

    A worker keeps one stream open, and its window in memory. Jobs on a cluster are not checked, because the memory of
    its machines is not known here.

    Raises:
        UserError: names the source and how many workers are possible.
    """
    workers, room = _workers(execution), int(_SHARE * machine_memory())
    packed = [source for source in sources if source.compression == "zstd"]
    if execution.address is not None or not packed or workers * MOST_WINDOW <= room:
        return
    with ThreadPoolExecutor(_THREADS, "windows") as threads:
        window, uri = max(zip(threads.map(_window, packed), [source.uri for source in packed], strict=True))
    if workers * window > room:
        raise UserError(
            f"{escape_path(uri)} needs a window of {window >> 20:,} MiB to be decoded, in each of "
            f"{format_count(workers, 'worker')}: together more than half of this machine's memory. Use --workers "
            f"{max(1, room // window)}, or recompress the file: zstd -dc --long=31 FILE | zstd."
        )


def _workers(execution: LabelExecution) -> int:
    """The most workers there can be, as far as is known before Ray starts."""
    others = [pool.max or pool.min for name, pool in execution.pools.items() if name != BASE_GROUP]
    base = execution.pools.get(BASE_GROUP)
    limit = base.max if base is not None and base.max is not None else len(os.sched_getaffinity(0))
    return (limit if execution.workers is None else max(1, execution.workers)) + sum(others)


def _window(source: Source) -> int:
    # A file that cannot be opened is reported when it is read.
    with suppress(OSError, UserError), SourceFile(source) as file:
        return window_of(file.read(LONGEST_HEAD))
    return 0
