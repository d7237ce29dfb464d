"""Reads every input once, several at a time, and cuts the corpus into units."""

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

    Each input is cut into blocks of that size, and units follow these in the order of the sorted sources: small files
    share a unit, a large one has many. Plain `.jsonl` counts by its bytes, a compressed file or WARC by its content,
    Parquet and Arrow by their text column before compression. The plan depends on the inputs and the settings alone.

    Inputs are read by threads: what takes the time (reading, hashing, decompressing, finding lines) lets go of Python's
    lock, and a thread, unlike a process, costs nothing to start.

    Args:
        config: the job.
        progress: told of a source and how many of its bytes were read since the last call; never by two at once.
        sources: what to read; None for all that the job names.
        threads: inputs that are read at a time; None for one a core.

    Raises:
        UserError: what `find_sources` and `check_fields` refuse, or an input that cannot be read.
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
    """Ends a thread whose result nobody waits for."""


def _surveys(sources: Sequence[Source], config: LabelConfig, progress: Progress | None, threads: int) -> list[Survey]:
    """The surveys of all sources in order; the first that fails ends the others."""
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
    """Units of the blocks of all sources in order, of as many as fit together."""
    first = [0]
    slices: list[tuple[int, int, int]] = []
    held = 0
    for index, each in enumerate(surveys):
        for start, stop, size in each.blocks.tolist():
            if held and held + size > limit:
                first.append(len(slices))
                held = 0
            slices.append((index, start, stop))
            held += size
    if len(slices) > first[-1]:
        first.append(len(slices))
    return Units(np.array(first, np.int64), np.array(slices, np.int64).reshape(-1, 3))
