"""The corpora that the demo samples from its machine."""

import gzip
import json
from pathlib import Path

from infra.demo.corpus import sample_code, sample_prose


def test_the_code_is_a_seeded_sample_within_its_limit(tmp_path: Path) -> None:
    sample = sample_code(tmp_path / "a", 100_000, seed=7)
    files = sorted(path for path in (tmp_path / "a").rglob("*.py"))
    assert len(files) == sample.documents > 3
    assert sum(path.stat().st_size for path in files) == sample.size <= 100_000
    sample_code(tmp_path / "b", 100_000, seed=7)
    sample_code(tmp_path / "c", 100_000, seed=8)
    names = [sorted(str(p.relative_to(tmp_path / x)) for p in (tmp_path / x).rglob("*.py")) for x in "abc"]
    assert names[0] == names[1] != names[2]


def test_the_prose_has_ids_of_its_own_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    sample = sample_prose(tmp_path / "a.jsonl.gz", 50_000, seed=7)
    sample_prose(tmp_path / "b.jsonl.gz", 50_000, seed=7)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    with gzip.open(tmp_path / "a.jsonl.gz", "rt", encoding="utf-8") as stream:
        pages = [json.loads(line) for line in stream]
    assert len({page["id"] for page in pages}) == len(pages) == sample.documents > 3
    assert sum(len(page["text"].encode()) for page in pages) == sample.size <= 50_000
