"""A training step of `phf train`, against a plain PyTorch loop of the same model on the same batches, one process."""

from collections.abc import Iterator
from typing import Any

from tests.benchmarks.measure import Comparison, compare

# Context, micro-batch and accumulation by model: five rounds of both take under a minute on two cores.
SIZES = {"nano": (128, 8, 8), "tiny": (256, 8, 4)}


def run() -> Iterator[Comparison]:
    from training.run.distributed import World

    world = World.from_environment()
    world.start()
    for name, (context, micro, accumulation) in SIZES.items():
        yield _measure(name, context, micro, accumulation, world)
    world.stop()


def _measure(name: str, context: int, micro: int, accumulation: int, world: Any) -> Comparison:
    import numpy as np
    import torch

    from training.config import ModelConfig, TrainingConfig
    from training.data.order import Batch
    from training.model.language_model import Vocabulary, build_model
    from training.objectives import build
    from training.run.engine import Engine, parameter_groups
    from training.run.schedule import plan_horizon

    blocks, vocabulary = micro * accumulation, 4096
    config = TrainingConfig(num_tokens=10**9, batch_size=blocks, micro_batch_size=micro)
    model, plain = (
        build_model(ModelConfig(name=name), Vocabulary(vocabulary, 0), context_length=context) for _ in range(2)
    )
    engine = Engine(model, config, plan_horizon(config, context, 1), world)
    optimizer = torch.optim.AdamW(parameter_groups(plain, 0.1), lr=5e-4, fused=True)
    ids = np.random.default_rng(0).integers(0, vocabulary, (blocks, context))
    batch, objective = Batch(ids, np.zeros(ids.shape, dtype=np.float32)), build("mle")

    def ours() -> None:
        engine.train_step(batch, objective, 5e-4)

    def bare() -> None:
        for part in torch.from_numpy(ids).split(micro):
            logits, _ = plain(part)
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), part[:, 1:].flatten())
            (loss / accumulation).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    result = compare(f"training step of {name}, against plain PyTorch", "tokens/s", ids.size, ours, bare)
    engine.close()
    return result
