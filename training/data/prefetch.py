"""Prefetch batches in a thread while a step is computed, into page-locked memory for a GPU."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import torch

from training.data.batches import Batch


class Prefetcher:
    """Batches by step number, with the following ones loaded ahead; a context manager.

    `load` alone decides which batch belongs to a step, so repeating or skipping a step costs a wait and nothing else.
    One thread loads the batches; its exceptions are raised by `get` for the same batch. The thread has ended when the
    context is left.

    Args:
        load: maps a step's number to its batch; called in the thread.
        steps: of the run; batches from this step on are not prefetched.
        device: where the batches go. For a GPU they lie in page-locked memory, from which a copy with `non_blocking`
            overlaps with computation.
        ahead: how many batches to prefetch at most.
    """

    def __init__(self, load: Callable[[int], Batch], steps: int, device: torch.device, *, ahead: int = 2) -> None:
        self._load = load
        self._steps = steps
        self._pinned = device.type == "cuda"
        self._ahead = ahead
        self._coming: dict[int, Future[Batch]] = {}
        self._pool = ThreadPoolExecutor(1, "batches", _use_device, (device,))

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._coming.clear()

    def get(self, step: int) -> Batch:
        """Return the batch of a step, its arrays as tensors; wait until it is ready."""
        wanted = [step, *range(step + 1, min(step + 1 + self._ahead, self._steps))]
        for other in self._coming.keys() - set(wanted):
            self._coming.pop(other).cancel()
        for each in wanted:
            if each not in self._coming:
                self._coming[each] = self._pool.submit(self._assemble, each)
        return self._coming.pop(step).result()

    def _assemble(self, step: int) -> Batch:
        batch = self._load(step)
        arrays = {field.name: getattr(batch, field.name) for field in fields(batch)}
        tensors = {name: torch.from_numpy(each) for name, each in arrays.items() if isinstance(each, np.ndarray)}
        if self._pinned:
            # Pin tensors: torch's pinned-memory allocator tracks by them which copies are still running.
            tensors = {name: each.pin_memory() for name, each in tensors.items()}
        return replace(batch, **tensors)  # type: ignore[arg-type]


def _use_device(device: torch.device) -> None:
    # A new thread uses the first GPU, where pinning would open another context for each rank.
    if device.type == "cuda":
        torch.cuda.set_device(device)
