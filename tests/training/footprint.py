"""Measure training in a fresh process: peak growth of memory, and seconds per step.

    python -m tests.training.footprint '{"model": "tiny", "zero_stage": 1, ...}'

Rank 0 prints JSON: `memory` (bytes above those before the model was built), `seconds` (CPU time of its one thread
per step, the median), and `peak_flops` (of that thread, per second).
"""

import json
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

STEPS = 4


def main(
    model: str,
    context: int,
    micro: int,
    *,
    accumulation: int = 2,
    vocabulary: int = 4096,
    zero_stage: int = 1,
    checkpointing: bool = False,
    steps: int = STEPS,
    warm: bool = True,
) -> dict[str, Any] | None:
    import numpy as np
    import torch

    from training import objectives
    from training.config import ModelConfig, TrainingConfig
    from training.data.batches import Batch
    from training.distributed.world import World
    from training.engine.engine import Engine
    from training.model.language_model import build_model, checkpoint_activations
    from training.model.vocabulary import Vocabulary
    from training.schedule import plan_horizon

    torch.set_num_threads(1)
    world = World.from_environment()
    world.start()
    blocks = micro * accumulation
    config = TrainingConfig(
        batch_size=blocks * world.size,
        micro_batch_size=micro,
        zero_stage=zero_stage,
        activation_checkpointing=checkpointing,
    )
    peak = matmul_rate()
    if warm:
        # The estimate excludes what a process allocates once for a model of any size.
        main("nano", 16, 1, vocabulary=512, zero_stage=zero_stage, steps=1, warm=False)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    network = build_model(ModelConfig(name=model), Vocabulary(vocabulary, 0), context_length=context)
    if checkpointing:
        checkpoint_activations(network)
    engine = Engine(network, config, plan_horizon(config, context, world.size), world, "fp32")
    loss = objectives.build("mle")
    generator = np.random.default_rng(world.rank)
    seconds = []
    for _ in range(steps):
        batch = Batch(
            generator.integers(0, vocabulary, (blocks, context)), generator.random((blocks, context), dtype=np.float32)
        )
        began = time.process_time()
        engine.train_step(batch, loss, 1e-3)
        seconds.append(time.process_time() - began)
    grown = resident("VmHWM") - before
    engine.close()
    if warm:
        world.stop()
    if not world.is_main:
        return None
    return {"memory": grown, "seconds": statistics.median(seconds[1:] or seconds), "peak_flops": peak}


def matmul_rate(size: int = 1024) -> float:
    """Return FLOPs per CPU second of the fastest of some matrix products."""
    import torch

    factor, seconds = torch.ones(size, size), []
    for _ in range(8):
        began = time.process_time()
        factor @ factor
        seconds.append(time.process_time() - began)
    return 2 * size**3 / min(seconds)


def resident(what: str) -> int:
    """Return the resident bytes of this process: now (`VmRSS`), or at peak (`VmHWM`)."""
    found = re.search(rf"^{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    measured = main(**json.loads(sys.argv[1]))
    if measured is not None:
        sys.stdout.write(f"{json.dumps(measured)}\n")
