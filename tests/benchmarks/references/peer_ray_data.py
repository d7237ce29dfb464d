"""Label a folder of JSON Lines with Ray Data: peer_ray_data.py INPUT OUTPUT WORKERS.

`map_batches` with a pool of actors, and Ray Data's own checkpoint by record, which skips what is written.
"""

import sys
from pathlib import Path
from typing import Any

import ray
from ray.data.checkpoint import CheckpointConfig

from tests.benchmarks.references.watched import BATCH, Labeller


class Actor:
    """Labels a batch of columns."""

    def __init__(self) -> None:
        self._labeller = Labeller()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add the columns `ends` and `scores`."""
        labels = self._labeller.label(batch["text"].tolist())
        return {**batch, **{key: [each[key] for each in labels] for key in ("ends", "scores")}}


if __name__ == "__main__":
    source, target, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    # Room for the reading task, and for the actor that filters by the checkpoint: with less, a second run never begins.
    ray.init(num_cpus=workers + 2, include_dashboard=False)
    ray.data.DataContext.get_current().checkpoint_config = CheckpointConfig(
        id_column="id", checkpoint_path=str(target / "checkpoint"), delete_checkpoint_on_success=False
    )
    data = ray.data.read_json(str(source), file_extensions=["jsonl"])
    data = data.map_batches(Actor, batch_size=BATCH, compute=ray.data.ActorPoolStrategy(size=workers))
    data.write_parquet(str(target / "data"))
