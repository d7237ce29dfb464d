"""Peak memory of two ranks that start under ZeRO 3, 355 M parameters: rank 0 alone makes the weights, or each does.

`built` is the peak once the model is built, `started` once the engine is, with the optimiser's states, of which each of
the two ranks has half. Less is better.
"""

import json
import subprocess
import sys
from collections.abc import Iterator

from tests.benchmarks.measure import Comparison


def run() -> Iterator[Comparison]:
    peaks = {way: _on_two_ranks(way) for way in ("once", "everywhere")}
    for moment in ("built", "started"):
        for rank in (0, 1):
            ours, reference = (peaks[way][rank][moment] for way in ("once", "everywhere"))
            yield Comparison(f"peak of rank {rank} under ZeRO 3, {moment}", "MB", (ours,), (reference,))


def _on_two_ranks(way: str) -> list[dict[str, float]]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run([*launcher, __name__, way], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(way: str) -> None:
    """Run one rank: build the model, start the engine, and on rank 0 print the peaks of all ranks."""
    import torch

    from training.config import ModelConfig, TrainingConfig
    from training.distributed.world import World
    from training.engine.engine import Engine
    from training.engine.timing import peak_memory
    from training.model.language_model import build_model
    from training.model.vocabulary import Vocabulary
    from training.schedule import plan_horizon

    world = World.from_environment()
    world.start()
    torch.manual_seed(0)
    skeleton = way == "once" and not world.is_main
    model = build_model(ModelConfig(name="gpt2-medium"), Vocabulary(50257, 50256), skeleton=skeleton)
    model.has_linear_head = True
    built = peak_memory(world.device) / 1e6
    config = TrainingConfig(batch_size=2, micro_batch_size=1, zero_stage=3, precision="bf16")
    Engine(model, config, plan_horizon(config, 64, world.size), world, "bf16")
    mine = {"built": built, "started": peak_memory(world.device) / 1e6}
    peaks: list[dict[str, float]] = [mine] * world.size
    torch.distributed.all_gather_object(peaks, mine)
    if world.is_main:
        sys.stdout.write(f"{json.dumps(peaks)}\n")
    world.stop()


if __name__ == "__main__":
    main(sys.argv[1])
