"""A copy in host memory of what `torch.save` would write, so that training can go on while it is written.

Host memory that a GPU copies to directly, of exactly the size that is asked for.
"""

import contextlib
import io
import mmap
import pickle
from typing import Any

import torch
from torch import UntypedStorage
from torch.storage import TypedStorage

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


class Snapshot:
    """Copies states into buffers that it keeps: after the first time, copying costs no more than moving the bytes.

    A state is any picklable object with tensors in it, on any device. The copy holds what saving and loading it would
    give back: storages that tensors share are copied once and shared again, and no object is the original's.

    On a GPU the larger buffers are pinned, which makes copying to them several times faster.
    """

    def __init__(self) -> None:
        self._buffers: list[UntypedStorage] = []
        self._used = 0

    def begin(self) -> None:
        """What was copied before is no longer needed: its buffers may be written over."""
        self._used = 0

    def copy(self, state: Any) -> Any:
        """A copy of the state, its tensors on the CPU. It is whole when this returns."""
        with io.BytesIO() as file:
            pickler = _Pickler(file)
            pickler.dump(state)
            copies = [self._copied(storage) for storage in pickler.storages]
            if any(storage.device.type == "cuda" for storage in pickler.storages):
                torch.cuda.synchronize()
            file.seek(0)
            return _Unpickler(file, copies).load()

    def _copied(self, storage: UntypedStorage) -> UntypedStorage:
        if self._used == len(self._buffers):
            self._buffers.append(host_buffer(0))
        buffer = self._buffers[self._used]
        if buffer.nbytes() != storage.nbytes():
            buffer = self._buffers[self._used] = host_buffer(storage.nbytes(), pinned=storage.device.type == "cuda")
        self._used += 1
        return buffer.copy_(storage, non_blocking=True) if storage.nbytes() else buffer


class _Pickler(pickle.Pickler):
    """Leaves storages out, as `torch.save` does, and lists them."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.storages: list[UntypedStorage] = []
        self._places: dict[int, int] = {}

    def persistent_id(self, value: Any) -> tuple[int, torch.dtype | None] | None:
        if isinstance(value, TypedStorage):
            storage, dtype = value._untyped_storage, value.dtype
        elif isinstance(value, UntypedStorage):
            storage, dtype = value, None
        else:
            return None
        place = self._places.setdefault(storage._cdata, len(self.storages))
        if place == len(self.storages):
            self.storages.append(storage)
        return place, dtype


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, storages: list[UntypedStorage]) -> None:
        super().__init__(file)
        self._storages = storages

    def persistent_load(self, key: tuple[int, torch.dtype | None]) -> Any:
        place, dtype = key
        storage = self._storages[place]
        if dtype is None:
            return storage
        return TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]
