"""Fixtures for scorers: those that take seconds to build are built once per session."""

from collections.abc import Callable
from pathlib import Path

import pytest

from scorers.contract import Scorer
from scorers.registry import ScorerSpec, build
from tests.scorers.helpers import tiny_checkpoint, tiny_classifier, tiny_folder, tiny_token_classifier


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint in Detoxify's format, and the folder of its configuration."""
    root = tmp_path_factory.mktemp("bert")
    folder = tiny_folder("bert", root / "config")
    return tiny_checkpoint("bert", folder, root / "model.ckpt"), folder


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a saved sequence classifier with the labels `fine` and `toxic`."""
    return tiny_classifier("roberta", tmp_path_factory.mktemp("classifier") / "model")


@pytest.fixture(scope="session")
def token_classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a saved token classifier of names and addresses, which finds some of both."""
    labels = ("O", "B-NAME", "I-NAME", "B-MAIL", "I-MAIL")
    return tiny_token_classifier(tmp_path_factory.mktemp("token-classifier") / "model", labels)


@pytest.fixture(scope="session")
def built(
    tiny_bert: tuple[Path, Path], classifier_folder: Path, token_classifier_folder: Path
) -> Callable[[str], Scorer]:
    """A function from a kind to its scorer, with default options except for small weights of networks."""
    scorers: dict[str, Scorer] = {}

    def of(kind: str) -> Scorer:
        if kind not in scorers:
            checkpoint, folder = tiny_bert
            options = {
                "detoxify": {"model": str(checkpoint), "config": str(folder)},
                "classifier": {"model": str(classifier_folder), "label": "toxic"},
                "token-classifier": {"model": str(token_classifier_folder)},
            }
            scorers[kind] = build(kind.replace("-", "_"), ScorerSpec(kind=kind, **options.get(kind, {})))
        return scorers[kind]

    return of
