"""Label a folder of JSON Lines with `multiprocessing.Pool`, a task per file: peer_pool.py INPUT OUTPUT WORKERS.

A file gets its name when it is whole, and files that are there are skipped.
"""

import itertools
import json
import multiprocessing
import sys
from functools import cache
from pathlib import Path

from tests.benchmarks.references.watched import BATCH, Labeller

labeller = cache(Labeller)


def label_file(paths: tuple[Path, Path]) -> None:
    """Label one file into another."""
    source, target = paths
    partial = target.with_suffix(".partial")
    with source.open(encoding="utf-8") as lines, partial.open("w", encoding="utf-8") as output:
        while records := [json.loads(line) for line in itertools.islice(lines, BATCH)]:
            labels = labeller().label([each["text"] for each in records])
            for record, label in zip(records, labels, strict=True):
                output.write(json.dumps({**record, **label}) + "\n")
    partial.rename(target)


def main(source: Path, target: Path, workers: int) -> None:
    """Label the files of `source` that `target` lacks."""
    target.mkdir(parents=True, exist_ok=True)
    tasks = [(each, target / each.name) for each in sorted(source.iterdir()) if not (target / each.name).exists()]
    with multiprocessing.Pool(workers) as pool:
        for _ in pool.imap_unordered(label_file, tasks):
            pass


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) / "data", int(sys.argv[3]))
