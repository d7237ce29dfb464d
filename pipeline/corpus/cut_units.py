"""Read every input once, several at a time, and cut the corpus into units."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import nullcontext

import numpy as np

from pipeline.config import LabelConfig
from pipeline.corpus.compression import LONGEST_HEAD, window_of
from pipeline.corpus.fields import check_fields
from pipeline.corpus.inputs import Source, find_inputs
from pipeline.corpus.plan import Plan, Units
from pipeline.corpus.streams import SourceFile
from pipeline.corpus.survey import Survey, survey
from pipeline.dataset.manifest import LeftOut

Progress = Callable[[Source, int], None]

_MOST_THREADS = 16
# Inputs whose decoder takes more memory than this are read one at a time.
_LONG_WINDOW = 1 << 27


def make_plan(
    config: LabelConfig,
    progress: Progress | None = None,
    *,
    sources: Sequence[Source] | None = None,
    threads: int | None = None,
) -> Plan:
    """Find the inputs, read each once, and cut them into units of at most `unit_size` bytes (or one longer record).

    Each input is cut into blocks of that size, and units combine these in the order of the sorted sources: small files
    share a unit, a large file spans many. The size is that of the bytes of plain `.jsonl`, of the content of compressed
    files and WARC, and of the uncompressed text column of Parquet and Arrow. The plan depends on inputs and settings
    alone.

    Threads read the inputs: the expensive steps (reading, hashing, decompressing, finding lines) release the GIL, and
    a thread, unlike a process, costs nothing to start.

    Args:
        config: the job.
        progress: called with a source and the number of bytes read since the last call; never concurrently.
        sources: the sources to read; None for all inputs of the job.
        threads: inputs that are read at a time; None for one per core.

    Raises:
        UserError: `find_sources` or `check_fields` refuses an input, or an input cannot be read.
    """
    left_out: list[LeftOut] = []
    if sources is None:
        found = find_inputs(config.inputs, config.kind, output=config.output)
        sources, left_out = found.sources, found.left_out
    check_fields(sources, config)
    surveys = _surveys(sources, config, progress, threads or len(os.sched_getaffinity(0)))
    return Plan(
        sources=list(sources),
        entries=[each.entry for each in surveys],
        units=_units(surveys, int(config.unit_size)),
        cut=[each.cut for each in surveys if each.cut is not None],
        left_out=left_out,
    )


class _Abandoned(BaseException):
    """Ends a thread whose result is no longer needed."""


def _surveys(sources: Sequence[Source], config: LabelConfig, progress: Progress | None, threads: int) -> list[Survey]:
    """Survey all sources, in order; the first failure ends the others."""
    lock, long_window, over = threading.Lock(), threading.Lock(), threading.Event()

    def run(source: Source) -> Survey:
        def on_read(size: int) -> None:
            if over.is_set():
                raise _Abandoned
            if progress is not None:
                with lock:
                    progress(source, size)

        with long_window if _needs_memory(source) else nullcontext():
            return survey(source, config, on_read)

    if min(threads, len(sources)) < 2:
        return [run(source) for source in sources]
    pool = ThreadPoolExecutor(min(threads, _MOST_THREADS, len(sources)), "survey")
    try:
        futures = [pool.submit(run, source) for source in sources]
        failed = next((each for each in wait(futures, return_when=FIRST_EXCEPTION).done if each.exception()), None)
        return [each.result() for each in ([failed] if failed else futures)]
    finally:
        over.set()
        pool.shutdown(cancel_futures=True)


def _needs_memory(source: Source) -> bool:
    if source.compression != "zstd":
        return False
    with SourceFile(source) as file:
        return window_of(file.read(LONGEST_HEAD)) > _LONG_WINDOW


def _units(surveys: Sequence[Survey], limit: int) -> Units:
    """Pack the blocks of all sources, in order, into units of at most `limit` bytes."""
    first = [0]
    slices: list[tuple[int, int, int]] = []
    total = 0
    for index, each in enumerate(surveys):
        for start, stop, size in each.blocks.tolist():
            if total and total + size > limit:
                first.append(len(slices))
                total = 0
            slices.append((index, start, stop))
            total += size
    if len(slices) > first[-1]:
        first.append(len(slices))
    return Units(np.array(first, np.int64), np.array(slices, np.int64).reshape(-1, 3))
