"""Run phf's commands in this process, `phf label` without Ray."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from phf import app
from pipeline.dataset import open_dataset
from tests.pipeline import without_ray


def run(*arguments: object, expect: int = 0) -> Any:
    """Run a command with --json, check its exit status, and return the parsed output."""
    with pytest.MonkeyPatch.context() as patch:
        without_ray.install(patch)
        result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == expect, result.output
    return json.loads(result.stdout) if result.stdout else result.stderr


def rows_of(dataset: Path | str) -> list[dict[str, Any]]:
    """All rows of a sealed dataset."""
    return [row for batch in open_dataset(str(dataset)).read_batches() for row in batch.to_pylist()]
