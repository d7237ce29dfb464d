"""Records that take their process with them: the others get the scores that they would have had beside a refused one."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.pipeline import probe
from tests.pipeline.labelling import Labelling, data_hashes

pytestmark = pytest.mark.slow

CANARY = "xyzzy-canary"


def quarantined(made: Labelling, *options: str) -> list[dict[str, Any]]:
    """What quarantine holds, as `phf inspect` reads it."""
    manifest = json.loads((made.output / "manifest.json").read_text())
    return manifest


def rows(output: Path) -> Counter[tuple[str, int]]:
    """How often each key is in the dataset."""
    tables = [
        pq.read_table(path, columns=["source", "position"]) for path in sorted((output / "data").rglob("*.parquet"))
    ]
    return Counter((row["source"], row["position"]) for table in tables for row in table.to_pylist())


def test_records_that_kill_their_process_go_into_quarantine_and_nothing_else_does(tmp_path: Path) -> None:
    texts = [f"{CANARY} one of {number:02}. Two. Three. {'x' * 300}" for number in range(40)]
    poison = {4: probe.SEGFAULT, 13: probe.HANG_IN_C, 14: probe.EXIT, 25: probe.EAT_MEMORY}
    for index, what in poison.items():
        texts[index] += what
    texts[33] += probe.KILL_ONCE
    made = Labelling(tmp_path / "disturbed", scorer="probe=poison_probe")
    made.write(texts)
    calm = Labelling(tmp_path / "calm", scorer="probe=poison_probe", env={probe.MILD: "1"})
    calm.write([text.replace(probe.KILL_ONCE, "x" * len(probe.KILL_ONCE)) for text in texts])
    result = made.run(
        *("--unit-size", "2000", "--set", "execution.attempts=2", "--set", "execution.memory_limit=900MB"),
        *("--set", "execution.unit_deadline_s=10", "--set", "execution.deadlines.probe=1"),
    )
    print(result.stderr, result.stdout)
    assert result.returncode == 3
