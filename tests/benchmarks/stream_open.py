"""Open a token store of 1e9 tokens and read a batch, with the layout stored beside it and without."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.measure import Comparison, compare

DOCUMENTS = 1_000_000


def run() -> Iterator[Comparison]:
    from training.data.batches import BatchSource
    from training.data.index import FOLDER, StreamOptions
    from training.data.store import TokenStore
    from training.data.tagged_stream import Stream

    tags: dict[str, Any] = {"tag_bounds": (0.005,), "tag_ids": (1, 2)}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_store(folder, DOCUMENTS)

        def read(**options: Any) -> None:
            stream = Stream(TokenStore.open(folder), "toxicity", StreamOptions(1024, 0, held_out=0.01, **options))
            BatchSource(stream, 64, seed=42).batch(12_345)

        def read_without_layout(**options: Any) -> None:
            shutil.rmtree(folder / FOLDER, ignore_errors=True)
            read(**options)

        for name, options in (("no tags", {}), ("tags, 1 % dropped", {**tags, "drop_tags": 0.01})):
            # They alternate: each opening with a layout follows one that has written it.
            yield compare(
                f"open 1e9 tokens and read a batch ({name}), against computing the layout",
                "openings/s",
                1,
                lambda options=options: read(**options),  # type: ignore[misc]
                lambda options=options: read_without_layout(**options),  # type: ignore[misc]
            )


def write_store(folder: Path, count: int) -> None:
    """Write a store of `count` documents of about a thousand tokens each."""
    from training.data.arrays import write_array
    from training.data.store import META_NAME, StoreMeta

    generator = np.random.default_rng(0)
    sentences = generator.integers(10, 70, count)
    documents = np.concatenate([[0], np.cumsum(sentences)])
    offsets = np.concatenate([[0], np.cumsum(generator.integers(5, 46, documents[-1]))])
    scores = generator.random(documents[-1], dtype=np.float32) * np.float32(0.01)
    arrays = {
        "document_offsets": documents,
        "sentence_offsets": offsets,
        "text_hashes": generator.integers(0, 2**63, count).astype(np.uint64),
        "text_bytes": sentences * 100,
        "scores.toxicity": scores,
        "means.toxicity": np.add.reduceat(scores.astype(np.float64), documents[:-1]) / sentences,
        "tokens": np.zeros(offsets[-1], np.uint16),
    }
    for name, values in arrays.items():
        write_array(folder / f"{name}.arrow", values)
    meta = StoreMeta(
        key="",
        dataset="",
        tokenizer="",
        tokenizer_name="",
        created_by="",
        columns=["toxicity"],
        documents=count,
        sentences=int(documents[-1]),
        tokens=int(offsets[-1]),
        text_bytes=int(sentences.sum() * 100),
        files={path.name: path.stat().st_size for path in folder.glob("*.arrow")},
    )
    (folder / META_NAME).write_text(meta.model_dump_json())
