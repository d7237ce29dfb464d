"""Copy what `torch.save` would write to host memory, so that training can continue while the copy is written.

On a GPU the copy goes to pinned host memory of exactly the size that is needed.
"""

import contextlib
import io
import mmap
import pickle
from typing import Any

import torch
from torch import UntypedStorage
from torch.storage import TypedStorage

# Anything smaller is copied through the driver's own buffer in microseconds.
_WORTH_PINNING = 1 << 20
# cudaHostRegisterPortable: pinned for every CUDA context.
_PORTABLE = 1


def host_buffer(size: int, *, pinned: bool = False) -> UntypedStorage:
    """Allocate `size` bytes of host memory, pinned if a GPU copies to it.

    Torch's allocator of pinned memory rounds up to the next power of two: up to twice as much, for a state of
    gigabytes. So this allocates ordinary pages and pins them for their lifetime. If the driver refuses, they stay
    unpinned, and copying is slower.

    Raises:
        OSError, RuntimeError: there is no memory.
    """
    if not pinned or size < _WORTH_PINNING:
        return torch.empty(size, dtype=torch.uint8).untyped_storage()
    pages = _Pages(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A page shared with a child process would be copied on write, and the GPU would write to the old page.
    pages.madvise(mmap.MADV_DONTFORK)
    storage = torch.frombuffer(pages, dtype=torch.uint8).untyped_storage()
    pages.pin(storage.data_ptr())
    return storage


class _Pages(mmap.mmap):
    """Anonymous memory pages. A storage on them keeps this object alive, so they are freed together."""

    _address: int | None = None
    _runtime: Any = None

    def pin(self, address: int) -> None:
        """Pin the pages if the driver allows it."""
        self._runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        if int(self._runtime.cudaHostRegister(address, len(self), _PORTABLE)) == 0:
            self._address = address
            return
        # CUDA keeps the error, and torch would raise it at the next kernel: consume it here.
        with contextlib.suppress(RuntimeError):
            torch.ones(1, device="cuda")

    def __del__(self) -> None:
        # Unpin before the pages are freed.
        if self._address is not None:
            self._runtime.cudaHostUnregister(self._address)


class Snapshot:
    """Copies states into reusable buffers, so that after the first copy only the bytes are moved.

    A state is any picklable object with tensors in it, on any device. The copy equals what saving and loading would
    return: storages that tensors share are copied once and shared again, and the copy shares no object with the
    original. Large buffers for a GPU are pinned, which makes copying several times faster.
    """

    def __init__(self) -> None:
        self._buffers: list[UntypedStorage] = []
        self._used = 0

    def begin(self) -> None:
        """Start a new snapshot; the buffers of the previous one are reused."""
        self._used = 0

    def copy(self, state: Any) -> Any:
        """Return a complete copy of the state, with its tensors on the CPU."""
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
    """Pickles without storages, as `torch.save` does, and lists them."""

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
