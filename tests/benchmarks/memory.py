"""Peak memory of the driver and of an actor of `phf label`, with 10 MB against 100 MB and 1 GB of input."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.measure import Comparison

SIZES = (10_000_000, 100_000_000, 1_000_000_000)


def run() -> Iterator[Comparison]:
    from tests.pipeline.peaks import Peaks, label_and_watch, write_corpus

    for suffix in (".jsonl", ".jsonl.gz"):
        peaks: dict[int, Peaks] = {}
        for size in SIZES:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                corpus = folder / f"corpus{suffix}"
                write_corpus(corpus, size)
                peaks[size] = label_and_watch(folder, corpus)
                shutil.rmtree(folder / "labelled")
        for size in SIZES[1:]:
            for who in ("driver", "actor"):
                smallest, larger = (getattr(peaks[each], who) / 1e6 for each in (SIZES[0], size))
                name = f"peak of the {who}, {SIZES[0] // 10**6} MB against {size // 10**6} MB of {suffix}"
                yield Comparison(name, "MB", (smallest,), (larger,))
