"""What `phf label` suggests when it has finished."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phf import app
from tests.pipeline import without_ray


@pytest.mark.parametrize("options", [(), ("--kind", "python")])
def test_training_is_suggested_only_if_something_has_a_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    without_ray.install(monkeypatch)
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "1", "text": "import os\n\nx=1\n" * 99}) + "\n")
    labelled = ["label", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out"), "--scorer", "pep8"]
    result = CliRunner().invoke(app, [*labelled, *options])
    assert result.exit_code == 0, result.output
    printed = " ".join(result.stdout.split())
    assert ("phf train" in printed) == bool(options)
    assert ("No sentence has a score in pep8" in printed and "need --kind python" in printed) != bool(options)
