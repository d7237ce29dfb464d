"""Measure a step: seconds by phase and in collectives, the machine's peak FLOP/s, and peak memory."""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from training.distributed.world import import_deepspeed
from training.engine.deepspeed_config import Precision
from training.engine.gpus import find_card

COMMUNICATION = "communication"
# The part of a lap before communication.
_AROUND = ""
_SIZE_ON_CPU, _SIZE_ON_GPU = 1024, 8192
# On a CPU a product takes some hundredths of a second, and other processes disturb it.
_SECONDS, _LEAST_ROUNDS, _MOST_ROUNDS = 0.3, 3, 50


def peak_flops(device: torch.device, precision: Precision) -> float:
    """Return the peak FLOP/s of one rank.

    For half precision on a known GPU, this is the maker's figure; otherwise that of the fastest of several large matrix
    products within a third of a second, with the configured number of threads.
    """
    if device.type == "cuda" and precision != "fp32":
        card = find_card(torch.cuda.get_device_name(device))
        if card is not None:
            return card.half
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    size = _SIZE_ON_GPU if device.type == "cuda" else _SIZE_ON_CPU
    factor = torch.ones(size, size, dtype=dtype, device=device)
    result = torch.empty_like(factor)
    seconds: list[float] = []
    while len(seconds) <= _LEAST_ROUNDS or (sum(seconds) < _SECONDS and len(seconds) < _MOST_ROUNDS):
        began = time.perf_counter()
        torch.mm(factor, factor, out=result)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds[1:])


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: on the GPU if the model is on one, else main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Stopwatch:
    """Seconds of one step by phase. On a GPU, laps are events in its queue; only `read` waits for them."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._laps: list[tuple[str, Any]] = []
        self._depth = 0

    def begin(self) -> None:
        """Begin a step; forget the laps of the previous one."""
        self._laps = [("", self._now())]

    def lap(self, phase: str) -> None:
        """Count the time since the last lap, except communication, as `phase`."""
        self._laps.append((phase, self._now()))

    @contextmanager
    def communicating(self) -> Iterator[None]:
        """Count the time inside the block as communication, not as part of the surrounding lap."""
        self._depth += 1
        if self._depth == 1:
            self._laps.append((_AROUND, self._now()))
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._laps.append((COMMUNICATION, self._now()))

    def read(self) -> dict[str, float]:
        """Return the seconds by phase, in order, communication last. On a GPU, wait for the last lap."""
        if self._on_gpu and self._laps:
            self._laps[-1][1].synchronize()
        found: dict[str, float] = {}
        communication: dict[str, float] = {}
        around = 0.0
        for (_, before), (phase, after) in zip(self._laps, self._laps[1:], strict=False):
            seconds = before.elapsed_time(after) / 1000 if self._on_gpu else after - before
            if phase == _AROUND:
                around += seconds
            elif phase == COMMUNICATION:
                communication[phase] = communication.get(phase, 0.0) + seconds
            else:
                found[phase] = found.get(phase, 0.0) + around + seconds
                around = 0.0
        return {**found, **communication}

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


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
    """Time the collectives of DeepSpeed's backend on a stopwatch; return a function that stops it.

    An asynchronous collective counts with its launch and the wait for it. On a GPU, only the time that the computation
    stream waits counts.
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
    """The handle of an asynchronous collective, with a timed `wait`."""

    def __init__(self, work: Any, watch: Stopwatch) -> None:
        self._work = work
        self._watch = watch

    def wait(self, *arguments: Any) -> Any:
        """See torch's `Work.wait`."""
        with self._watch.communicating():
            return self._work.wait(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
