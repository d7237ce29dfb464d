"""Host buffers for a GPU have exactly the requested size, are pinned for their lifetime, and are ordinary memory where
pinning is refused. The CUDA runtime is a stand-in here."""

import gc
import mmap

import pytest
import torch

from training.loop import snapshot
from training.loop.snapshot import Snapshot

SIZE = 3 * (1 << 20) + 17


class Runtime:
    def __init__(self, status=0):
        self.status = status
        self.asked = []
        self.pinned = {}

    def cudaHostRegister(self, address, size, flags):
        self.asked.append((address, size, flags))
        if not self.status:
            assert address not in self.pinned
            self.pinned[address] = size
        return self.status

    def cudaHostUnregister(self, address):
        del self.pinned[address]
        return 0


@pytest.fixture
def runtime(monkeypatch):
    made = Runtime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: made)
    return made


def test_it_is_pinned_in_its_own_pages_until_nobody_needs_it(runtime):
    storage = snapshot.host_buffer(SIZE, pinned=True)
    assert storage.nbytes() == SIZE
    assert runtime.asked == [(storage.data_ptr(), SIZE, 1)]
    assert storage.data_ptr() % mmap.PAGESIZE == 0
    tensor = torch.empty(0, dtype=torch.uint8).set_(storage)
    del storage
    tensor.fill_(7)
    gc.collect()
    assert runtime.pinned == {tensor.data_ptr(): SIZE}
    assert int(tensor.long().sum()) == 7 * SIZE
    del tensor
    gc.collect()
    assert runtime.pinned == {}


@pytest.mark.parametrize(("size", "pinned"), [(0, True), (1000, True), (SIZE, False)])
def test_what_is_small_or_of_no_gpu_is_ordinary(runtime, size, pinned):
    assert snapshot.host_buffer(size, pinned=pinned).nbytes() == size
    assert runtime.asked == []


def test_where_it_is_refused_it_is_ordinary_and_the_error_does_not_come_later(runtime, monkeypatch):
    raised = []

    def kernel(*_, **__):
        raised.append(1)
        raise RuntimeError("CUDA error: operation not supported")

    runtime.status = 801
    monkeypatch.setattr(torch, "ones", kernel)
    storage = snapshot.host_buffer(SIZE, pinned=True)
    assert (len(runtime.asked), raised) == (1, [1])
    assert storage.fill_(1).nbytes() == SIZE
    del storage
    gc.collect()


def test_a_state_is_copied_to_it_and_saved_as_to_any_memory(runtime, monkeypatch, tmp_path):
    plain = snapshot.host_buffer
    monkeypatch.setattr(snapshot, "host_buffer", lambda size, pinned=False: plain(size, pinned=True))
    flat = torch.randn(1 << 19)
    kept = Snapshot()
    copied = kept.copy({"flat": flat, "half": flat[: 1 << 18], "odd": torch.arange(400_001)})
    assert sorted(runtime.pinned.values()) == [1 << 21, 8 * 400_001]
    torch.save(copied, tmp_path / "copy.pt")
    loaded = torch.load(tmp_path / "copy.pt")
    assert torch.equal(loaded["flat"], flat)
    assert torch.equal(loaded["half"], flat[: 1 << 18])
    assert torch.equal(loaded["odd"], torch.arange(400_001))
    assert (tmp_path / "copy.pt").stat().st_size < (1 << 21) + 8 * 400_001 + 5000
    # A larger state takes the place of the one before, whose memory is let go.
    del copied
    kept.begin()
    kept.copy({"flat": torch.randn(1 << 20)})
    gc.collect()
    assert sorted(runtime.pinned.values()) == [8 * 400_001, 1 << 22]
    del kept
    gc.collect()
    assert runtime.pinned == {}
