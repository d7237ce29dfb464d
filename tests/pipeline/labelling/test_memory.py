"""The memory of a labelling job is bounded by its settings, not by its corpus."""

from pathlib import Path

import pytest

from tests.pipeline.peaks import Peaks, label_and_watch, write_corpus


@pytest.mark.slow
def test_sixteen_times_the_input_takes_no_more_memory(tmp_path: Path) -> None:
    sizes = (4_000_000, 64_000_000)
    small, large = (_peaks(tmp_path / str(size), size) for size in sizes)
    # Well below the 60 MB that either process would need to hold its input once as bytes.
    allowed = (sizes[1] - sizes[0]) // 5 * 2
    assert large.actor - small.actor < allowed
    assert large.driver - small.driver < allowed


def _peaks(folder: Path, size: int) -> Peaks:
    folder.mkdir()
    write_corpus(folder / "corpus.jsonl", size)
    # Sealing holds one shard at most; both corpora have several.
    return label_and_watch(folder, folder / "corpus.jsonl", "--shard-size", "2MB")
