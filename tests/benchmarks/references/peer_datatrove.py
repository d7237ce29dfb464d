"""Label a folder of JSON Lines with datatrove's local executor: peer_datatrove.py INPUT OUTPUT WORKERS.

A filter that keeps everything scores batches of records. There is a task per file, and finished ones are skipped.
"""

import sys
from functools import cache
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from tests.benchmarks.references.watched import BATCH, Labeller

labeller = cache(Labeller)


class Tagger(BaseFilter):  # type: ignore[misc]
    """Adds labels to the metadata of every record."""

    name = "tagger"

    def __init__(self) -> None:
        super().__init__(batch_size=BATCH)

    def filter(self, doc: Any) -> bool:
        """Label one record."""
        return bool(self.filter_batch([doc])[0])

    def filter_batch(self, batch: list[Any]) -> list[bool]:
        """Label several records."""
        for doc, labels in zip(batch, labeller().label([each.text for each in batch]), strict=True):
            doc.metadata.update(labels)
        return [True] * len(batch)


if __name__ == "__main__":
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    LocalPipelineExecutor(
        pipeline=[JsonlReader(str(source)), Tagger(), JsonlWriter(str(target / "data"))],
        tasks=len(list(source.iterdir())),
        workers=int(sys.argv[3]),
        logging_dir=str(target / "logs"),
    ).run()
