"""Host memory that a GPU copies to directly, of exactly the size that is asked for."""

import contextlib
import mmap
from typing import Any

import torch
from torch import UntypedStorage

# What is smaller is copied through the driver's own buffer in microseconds.
_WORTH_PINNING = 1 << 20
# Of CUDA's runtime: pinned for every context.
_PORTABLE = 1


def host_buffer(size: int, *, pinned: bool = False) -> UntypedStorage:
    """Host memory of `size` bytes, which holds nothing yet.

    Torch's allocator of pinned memory takes the next power of two, for a state of gigabytes up to twice as much. So
    pages that are allocated as any others are pinned here, for as long as they are there. Where that is refused, they
    stay as they are: copying is slower then.

    Args:
        size: in bytes.
        pinned: whether a GPU copies to it.

    Raises:
        OSError, RuntimeError: there is no memory.
    """
    if not pinned or size < _WORTH_PINNING:
        return torch.empty(size, dtype=torch.uint8).untyped_storage()
    pages = _Pages(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A page that a child process shared would be copied when it is written, and the GPU would write to the old one.
    pages.madvise(mmap.MADV_DONTFORK)
    storage = torch.frombuffer(pages, dtype=torch.uint8).untyped_storage()
    pages.pin(storage.data_ptr())
    return storage


class _Pages(mmap.mmap):
    """Pages of no file. A storage on them holds on to this object, so that they go when it does."""

    _address: int | None = None
    _runtime: Any = None

    def pin(self, address: int) -> None:
        """Pin them, if the driver lets us."""
        self._runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        if int(self._runtime.cudaHostRegister(address, len(self), _PORTABLE)) == 0:
            self._address = address
            return
        # CUDA remembers the error, and torch would raise it at the next kernel, whichever that is.
        with contextlib.suppress(RuntimeError):
            torch.ones(1, device="cuda")

    def __del__(self) -> None:
        # Before the pages are gone.
        if self._address is not None:
            self._runtime.cudaHostUnregister(self._address)
