"""Fixtures: a sealed dataset, and a copy of it to damage."""

import shutil
from pathlib import Path

import pytest

from pipeline.corpus.records import Quarantined
from tests.datasets import SOURCE
from tests.pipeline.committed import commit_units

ROWS = [
    {
        "text": f"Das ist Satz {n}. Noch einer — mit «Zeichen»! Und der letzte",
        "toxicity": [n / 60, n / 30, 0.25],
        "pii": [0.0, 0.5, n / 60] if n % 3 else None,
    }
    for n in range(30)
]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """A sealed dataset of two shards, with an empty text, nulls and quarantine."""
    units = [ROWS[:7], [*ROWS[7:20], {"text": "", "toxicity": [], "pii": []}], ROWS[20:]]
    gone = {1: [Quarantined(SOURCE, 9, "not-json")], 2: [Quarantined(SOURCE, 32, "deadline")]}
    cut = [Quarantined(SOURCE, 99, "truncated-source")]
    labelled = commit_units(
        tmp_path_factory.mktemp("sealed") / "out",
        units,
        ["toxicity", "pii"],
        thresholds={"pii": 0},
        quarantined=gone,
        cut=cut,
        shard_size=4_000,
    )
    labelled.write_job()
    manifest = labelled.seal()
    assert len(manifest.shards) == 2
    return labelled.folder


@pytest.fixture
def dataset(sealed, tmp_path):
    return Path(shutil.copytree(sealed, tmp_path / "out"))
