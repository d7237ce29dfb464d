"""Scorers that take seconds to build are built once a session; that they keep nothing is tested too."""

from collections.abc import Callable
from pathlib import Path

import pytest

from scorers.contract import Scorer
from scorers.registry import ScorerSpec, build
from tests.scorers.helpers import tiny_checkpoint, tiny_folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint in Detoxify's format and the folder of its configuration."""
    root = tmp_path_factory.mktemp("bert")
    folder = tiny_folder("bert", root / "config")
    return tiny_checkpoint("bert", folder, root / "model.ckpt"), folder


@pytest.fixture(scope="session")
def built(tiny_bert: tuple[Path, Path]) -> Callable[[str], Scorer]:
    """The scorer of a kind, with its defaults but for Detoxify's weights."""
    scorers: dict[str, Scorer] = {}

    def of(kind: str) -> Scorer:
        if kind not in scorers:
            checkpoint, folder = tiny_bert
            options = {"model": str(checkpoint), "config": str(folder)} if kind == "detoxify" else {}
            scorers[kind] = build(kind, ScorerSpec(kind=kind, **options))
        return scorers[kind]

    return of
