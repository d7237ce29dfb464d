"""A copy in host memory of what `torch.save` would write, so that training can go on while it is written."""

import io
import pickle
from typing import Any

import torch
from torch import UntypedStorage
from torch.storage import TypedStorage

from training.run.pages import host_buffer


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
