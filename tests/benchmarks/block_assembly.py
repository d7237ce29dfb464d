"""Assemble the blocks of a step at GPT-2's size, against the step itself: a ratio of 100 is one per cent of its time.

A store of 40 million tokens, with a control token before each sentence; one block of 1,024 tokens a step, in float32.
"""

import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from tests.benchmarks.measure import Comparison, compare

DOCUMENTS, CONTEXT, VOCABULARY = 40_000, 1024, 50_257


def run() -> Iterator[Comparison]:
    from tests.benchmarks.stream_open import write_store
    from training import objectives
    from training.config import ModelConfig, TrainingConfig
    from training.data.batches import BatchSource
    from training.data.index import StreamOptions
    from training.data.store import TokenStore
    from training.data.tagged_stream import Stream
    from training.distributed.world import World
    from training.engine.engine import Engine
    from training.model.language_model import Vocabulary, build_model
    from training.schedule import plan_horizon

    world = World.from_environment()
    world.start()
    with tempfile.TemporaryDirectory() as place:
        write_store(Path(place), DOCUMENTS)
        options = StreamOptions(CONTEXT, 0, tag_bounds=(0.005,), tag_ids=(1, 2), drop_tags=0.01)
        batches = BatchSource(Stream(TokenStore.open(Path(place)), "toxicity", options), 1, seed=42)
        config = TrainingConfig(batch_size=1, micro_batch_size=1)
        model = build_model(ModelConfig(name="gpt2"), Vocabulary(VOCABULARY, 0), context_length=CONTEXT)
        engine = Engine(model, config, plan_horizon(config, CONTEXT, 1), world, "fp32")
        objective, steps, batch = objectives.build("mle"), count(), batches.batch(0)
        yield compare(
            "assemble the block of a step, against the step of GPT-2 124M",
            "steps/s",
            1,
            lambda: batches.rank_batch(next(steps), 0, 1),
            lambda: engine.train_step(batch, objective, 5e-4),
            rounds=3,
        )
        engine.close()
    world.stop()
