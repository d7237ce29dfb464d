"""How long the loop stops for a checkpoint that is written in parallel, against one that it waits for."""

import hashlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import Comparison, compare

# Context and vocabulary by model: 30 and 124 million parameters.
SIZES = {"small": (64, 8192), "gpt2": (64, 50304)}
ROUNDS = 3


def run() -> Iterator[Comparison]:
    from training.distributed.world import World

    world = World.from_environment()
    world.start()
    for name, (context, vocabulary) in SIZES.items():
        yield from _measure(name, context, vocabulary, world)
    world.stop()


def _measure(name: str, context: int, vocabulary: int, world: Any) -> Iterator[Comparison]:
    import numpy as np

    from training import objectives
    from training.config import ModelConfig, TrainingConfig
    from training.data.batches import Batch
    from training.engine.engine import Engine
    from training.loop.saving import Saving
    from training.model.language_model import Vocabulary, build_model
    from training.runs import checkpoints
    from training.schedule import plan_horizon

    config = TrainingConfig(num_tokens=10**9, batch_size=1, keep_checkpoints=1)
    model = build_model(ModelConfig(name=name), Vocabulary(vocabulary, 0), context_length=context)
    engine = Engine(model, config, plan_horizon(config, context, 1), world, "fp32")
    objective = objectives.build("mle")
    shape = (1, context)
    batch = Batch(np.random.default_rng(0).integers(0, vocabulary, shape), np.zeros(shape, np.float32))

    def step() -> float:
        began = time.perf_counter()
        engine.train_step(batch, objective, 1e-4)
        return time.perf_counter() - began

    alone = [step() for _ in range(6)][1:]
    waiting, beside, meanwhile = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        saving = Saving(engine, config, world, Path(folder), lambda: None)
        for number in range(1, 2 * ROUNDS + 3):
            saving.save(number, 0.0, background=bool(number % 2))
            stalled = saving.read()["stalled"]
            while saving.pending is not None:
                meanwhile.append(step())
                saving.advance(*saving.under_way)
            # The first save of each way also allocates the buffers and the optimiser's pages.
            if number > 2:
                (beside if number % 2 else waiting).append(stalled)
        saving.close()
        path = next(Path(folder).iterdir())
        files = [each for each in path.rglob("*") if each.is_file()]
        size = sum(each.stat().st_size for each in files)
        yield Comparison(
            f"checkpoint of {name}, {size / 1e9:.2f} GB, stall of the loop",
            "checkpoints/s",
            tuple(1 / each for each in beside),
            tuple(1 / each for each in waiting),
            f"a step took {_median(alone):.2f} s alone, {_median(meanwhile):.2f} s while one was written",
        )
        yield compare(
            f"verifying a checkpoint of {name}, against its files one by one",
            "GB/s",
            size / 1e9,
            lambda: checkpoints.verify(path),
            lambda: [_hash(each) for each in files],
            rounds=ROUNDS,
        )
    engine.close()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
