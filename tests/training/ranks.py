"""The program that `test_ranks.py` starts on several ranks: steps of every ZeRO stage, with a save or a load.

    python -m tests.training.ranks FOLDER save|load RANKS CASE...

RANKS is the number of ranks that wrote the checkpoint to load: a copy of the state, written after the following steps.
A CASE is STAGE-PRECISION, such as 1-fp32, optionally followed by:
- `grown`: starts from the checkpoint FOLDER/base, with two more control tokens and padded embeddings;
- `optimizer` or `parameters`: what to offload.

With ZeRO 3 only rank 0 has the weights at first. Before the actual save, one save fails on a full disk.

Rank 0 prints the losses as JSON, by case; for grown cases followed by figures of the export: the rows of the embedding,
and the sum of all weights' magnitudes.
"""

import json
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from training import objectives
from training.config import ModelConfig, TrainingConfig
from training.data.batches import Batch
from training.distributed.rendezvous import COLLECTIVE_TIMEOUT
from training.distributed.world import World
from training.engine.engine import Engine
from training.loop.snapshot import Snapshot
from training.model.language_model import build_model
from training.model.vocabulary import Vocabulary
from training.schedule import plan_horizon

BLOCKS, LENGTH, VOCABULARY = 8, 16, 67
BEFORE, AFTER = range(3), range(3, 7)


def main(folder: Path, action: str, cases: list[str], written_by: int = 0) -> dict[str, list[float]]:
    """Return the losses of the steps before and after a save, or only of those after a load."""
    torch.set_num_threads(1)
    world = World.from_environment()
    world.start()
    group = dist.group.WORLD._get_backend(world.device)
    assert world.size == 1 or group.options._timeout == COLLECTIVE_TIMEOUT
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
            refused(engine, folder / f"{case}.full")
            engine.save(place, partial(copy, Snapshot(), states))
            found[case] = losses + [step(engine, loss, number) for number in AFTER]
            for path, state in states:
                torch.save(state, path)
            world.barrier()
            if "grown" in case:
                found[case] += exported(engine)
        engine.close()
    if world.is_main:
        sys.stdout.write(f"{json.dumps(found)}\n")
    world.stop()
    return found


@contextmanager
def no_room(limit: int = 1000) -> Iterator[None]:
    """Limit files to `limit` bytes, which looks like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refused(engine: Engine, folder: Path) -> None:
    """Save on a full disk: every rank must raise, and none may wait for another."""
    engine.world.on_main(folder.mkdir)
    with no_room():
        try:
            engine.save(folder)
        except (OSError, RuntimeError):
            return
    raise AssertionError("there was room")


def copy(snapshot: Snapshot, states: list[tuple[Path, Any]], state: Any, path: Path) -> None:
    states.append((path, snapshot.copy(state)))


def make(world: World, case: str, folder: Path, *, reshaped: bool) -> tuple[Engine, objectives.Objective]:
    stage, precision, *more = case.split("-")
    grown = "grown" in more
    offload = next((each for each in more if each in ("optimizer", "parameters")), "none")
    settings = folder / "deepspeed.json"
    world.on_main(
        # By default DeepSpeed does not partition parameters of a small model.
        lambda: settings.write_text('{"zero_optimization": {"stage3_param_persistence_threshold": 0}}')
    )
    config = TrainingConfig(
        batch_size=BLOCKS,
        micro_batch_size=2,
        zero_stage=int(stage),
        precision=precision,
        deepspeed=str(settings),
        offload=offload,
    )
    torch.manual_seed(5 if reshaped else 0)
    control = (VOCABULARY, VOCABULARY + 1) if grown else ()
    model = build_model(
        ModelConfig(name=str(folder / "base") if grown else "nano", pretrained=grown),
        Vocabulary(VOCABULARY + len(control), 0, control),
        value_head=True,
        rows_multiple=16 if grown else 1,
        skeleton=stage == "3" and not world.is_main,
    )
    model.has_linear_head = True
    engine = Engine(model, config, plan_horizon(config, LENGTH, world.size), world, precision, reshaped=reshaped)
    return engine, objectives.build("awr", alpha=0.5, beta=1.0)


def exported(engine: Engine) -> list[float]:
    """Return the rows of the embedding and the sum of all weights' magnitudes, on rank 0."""
    weights = engine.state_dict() or {}
    rows = [len(each) for name, each in weights.items() if name.endswith("embed_tokens.weight")]
    return [*rows, sum(float(each.double().abs().sum()) for each in weights.values())]


def step(engine: Engine, loss: objectives.Objective, number: int) -> float:
    """Train one step; return the loss of the whole batch."""
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
    sys.stdout.flush()
    # Exit at once: a torch thread that takes the GIL during the interpreter's shutdown aborts the process.
    os._exit(0)
