"""What `test_ranks.py` starts on several ranks: steps of every ZeRO stage, and a save or a load between them.

    python -m tests.training.ranks FOLDER save|load RANKS CASE...

RANKS have written what is loaded; a CASE is STAGE-PRECISION, such as 1-fp32. What is saved is copied, and written after
the steps that follow.

Rank 0 prints the losses as JSON, by case.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training import objectives
from training.config import ModelConfig, TrainingConfig
from training.data.order import Batch
from training.model.language_model import Vocabulary, build_model
from training.run.distributed import World
from training.run.engine import Engine
from training.run.schedule import plan_horizon
from training.run.snapshot import Snapshot

BLOCKS, LENGTH, VOCABULARY = 8, 16, 67
BEFORE, AFTER = range(3), range(3, 7)


def main(folder: Path, action: str, cases: list[str], written_by: int = 0) -> dict[str, list[float]]:
    """Losses of the steps: those before and after a save, or only those after, of an engine that loads."""
    torch.set_num_threads(1)
    world = World.from_environment()
    world.start()
    found = {}
    for case in cases:
        engine, loss = make(world, case, folder, reshaped=action == "load" and written_by != world.size)
        place = folder / case
        if action == "load":
            engine.load(place)
            found[case] = [step(engine, loss, number) for number in AFTER]
        else:
            losses = [step(engine, loss, number) for number in BEFORE]
            world.on_main(lambda place=place: place.mkdir(parents=True))
            states = []
            weights = engine.state_dict()
            torch.save(weights, folder / f"{case}.whole{world.rank}.pt")
            engine.save(place, partial(copy, Snapshot(), states))
            found[case] = losses + [step(engine, loss, number) for number in AFTER]
            for path, state in states:
                torch.save(state, path)
            world.barrier()
        engine.close()
    if world.is_main:
        sys.stdout.write(f"{json.dumps(found)}\n")
    world.stop()
    return found


def copy(snapshot: Snapshot, states: list[tuple[Path, Any]], state: Any, path: Path) -> None:
    states.append((path, snapshot.copy(state)))


def make(world: World, case: str, folder: Path, *, reshaped: bool) -> tuple[Engine, objectives.Objective]:
    stage, precision = case.split("-")
    settings = folder / "deepspeed.json"
    world.on_main(
        # DeepSpeed partitions none of a small model's parameters unless it is told to.
        lambda: settings.write_text('{"zero_optimization": {"stage3_param_persistence_threshold": 0}}')
    )
    config = TrainingConfig(
        batch_size=BLOCKS, micro_batch_size=2, zero_stage=int(stage), precision=precision, deepspeed=str(settings)
    )
    torch.manual_seed(5 if reshaped else 0)
    model = build_model(ModelConfig(name="nano"), Vocabulary(VOCABULARY, 0), value_head=True)
    engine = Engine(model, config, plan_horizon(config, LENGTH, world.size), world, reshaped=reshaped)
    return engine, objectives.build("awr", alpha=0.5, beta=1.0)


def step(engine: Engine, loss: objectives.Objective, number: int) -> float:
    """The loss of the whole batch."""
    world = engine.world
    generator = np.random.default_rng(number)
    ids = generator.integers(0, VOCABULARY, (BLOCKS, LENGTH))
    scores = generator.random((BLOCKS, LENGTH), dtype=np.float32)
    share = BLOCKS // world.size
    mine = slice(world.rank * share, (world.rank + 1) * share)
    outcome = engine.train_step(Batch(ids[mine], scores[mine]), loss, 1e-2)
    return float(world.sum(outcome.loss.detach().float().reshape(1)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[4:], int(sys.argv[3]))
