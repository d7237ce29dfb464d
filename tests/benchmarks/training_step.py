"""Training steps of `phf train` in one process.

`mle` against a plain PyTorch loop of the same model on the same batches, and every other loss against `mle`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.measure import Comparison, compare

# Context, micro-batch, accumulation and vocabulary by model.
SIZES = {
    "nano": (128, 8, 8, 4096),
    "tiny": (256, 8, 8, 4096),
    "small": (256, 1, 8, 8192),
    "gpt2": (128, 1, 8, 50257),
}
LOSSES: dict[str, dict[str, float]] = {
    "unlikelihood": {"threshold": 0.5, "alpha": 1.0},
    "rwr": {"beta": 10.0},
    "awr": {"alpha": 0.5, "beta": 10.0},
}


def run() -> Iterator[Comparison]:
    from training.distributed.world import World

    world = World.from_environment()
    world.start()
    for name, sizes in SIZES.items():
        setting = Setting(name, *sizes, world)
        yield _against_plain(setting)
        # The largest would take minutes per loss, and the larger the model, the less the losses differ.
        for loss in LOSSES if name != "gpt2" else ():
            yield _against_mle(setting, loss)
    world.stop()


@dataclass(frozen=True)
class Setting:
    """A model, and the shape of its step's batch."""

    name: str
    context: int
    micro: int
    accumulation: int
    vocabulary: int
    world: Any

    def config(self) -> Any:
        from training.config import TrainingConfig

        return TrainingConfig(num_tokens=10**9, batch_size=self.micro * self.accumulation, micro_batch_size=self.micro)

    def model(self, *, value_head: bool = False) -> Any:
        from training.config import ModelConfig
        from training.model.language_model import build_model
        from training.model.vocabulary import Vocabulary

        network = ModelConfig(name=self.name)
        return build_model(network, Vocabulary(self.vocabulary, 0), value_head=value_head, context_length=self.context)

    def engine(self, *, value_head: bool = False) -> Any:
        from training.engine.engine import Engine
        from training.schedule import plan_horizon

        config = self.config()
        horizon = plan_horizon(config, self.context, 1)
        return Engine(self.model(value_head=value_head), config, horizon, self.world, "fp32")

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.micro * self.accumulation * self.context

    def batch(self) -> Any:
        import numpy as np

        from training.data.batches import Batch

        generator = np.random.default_rng(0)
        shape = (self.micro * self.accumulation, self.context)
        return Batch(generator.integers(0, self.vocabulary, shape), generator.random(shape, dtype=np.float32))


def our_step(setting: Setting, engine: Any) -> Callable[[], object]:
    """Return a function that makes one step with `mle`."""
    from training.objectives import build

    batch, objective = setting.batch(), build("mle")
    return lambda: engine.train_step(batch, objective, 5e-4)


def plain_step(setting: Setting) -> Callable[[], None]:
    """Return a function that makes the same step in plain PyTorch."""
    import torch

    from training.engine.engine import parameter_groups

    plain, batch = setting.model(), setting.batch()
    optimizer = torch.optim.AdamW(parameter_groups(plain, 0.1), lr=5e-4, fused=True)

    def step() -> None:
        for part in torch.from_numpy(batch.input_ids).split(setting.micro):
            logits, _ = plain(part)
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), part[:, 1:].flatten())
            (loss / setting.accumulation).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _against_plain(setting: Setting) -> Comparison:
    engine = setting.engine()
    title = f"training step of {setting.name}, mle, against plain PyTorch"
    result = compare(title, "tokens/s", setting.tokens, our_step(setting, engine), plain_step(setting))
    engine.close()
    return result


def _against_mle(setting: Setting, name: str) -> Comparison:
    from training.objectives import build

    objective, mle, batch = build(name, **LOSSES[name]), build("mle"), setting.batch()
    engine, plainer = setting.engine(value_head=objective.needs_values), setting.engine()
    result = compare(
        f"training step of {setting.name}, {name}, against mle",
        "tokens/s",
        batch.input_ids.size,
        lambda: engine.train_step(batch, objective, 5e-4),
        lambda: plainer.train_step(batch, mle, 5e-4),
    )
    engine.close()
    plainer.close()
    return result
