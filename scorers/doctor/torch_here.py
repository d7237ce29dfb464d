"""Find out what torch can do here; runs in a process of its own, since importing torch takes seconds and memory."""

import time
from importlib.util import find_spec
from typing import Any

# Large enough for a matrix product to reach its full rate, small enough to take a second at a hundredth of it.
_SIZE = 512
_ROUNDS = 20
_MOST_S = 1.0


def inspect_torch() -> dict[str, Any]:
    """Return version, CUDA build, devices, and seconds of a matrix product in fp32 and bf16, as JSON values."""
    if find_spec("torch") is None:
        return {"version": None}
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = {name: _time_product(torch, getattr(torch, name)) for name in ("float32", "bfloat16")}
    return {
        "version": torch.__version__,
        "cuda_build": torch.version.cuda,
        "threads": threads,
        "devices": [_device(torch, index) for index in range(torch.cuda.device_count())],
        "cpu_product_s": {"size": _SIZE, "fp32": seconds["float32"], "bf16": seconds["bfloat16"]},
    }


def _device(torch: Any, index: int) -> dict[str, Any]:
    facts = torch.cuda.get_device_properties(index)
    return {
        "name": facts.name,
        "compute_capability": f"{facts.major}.{facts.minor}",
        "memory": facts.total_memory,
        # Older GPUs emulate bf16 in fp32, which torch counts as support.
        "bf16": facts.major >= 8,
    }


def _time_product(torch: Any, dtype: Any) -> float:
    """Return the seconds of one matrix product on one core: the best of several, since the others were disturbed."""
    a = torch.randn(_SIZE, _SIZE).to(dtype)
    a @ a
    taken: list[float] = []
    while len(taken) < _ROUNDS and sum(taken) < _MOST_S:
        began = time.perf_counter()
        a @ a
        taken.append(time.perf_counter() - began)
    return min(taken)
