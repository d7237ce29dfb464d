"""The kind of a column's documents."""

import pytest

from pipeline.dataset.manifest import Manifest, ScorerEntry
from training.data.datasets import document_kind


@pytest.mark.parametrize(
    ("kind", "options", "setting", "documents"),
    [
        ("pycodestyle", {}, None, "python"),
        ("ruff", {}, "auto", "python"),
        ("ruff", {}, "prose", "prose"),
        ("linear", {"documents": "python"}, "auto", "python"),
        ("linear", {"documents": "any"}, "auto", "prose"),
        ("of-a-package-that-is-not-here", {}, "auto", "prose"),
    ],
)
def test_the_document_kind_is_the_setting_or_that_of_the_scorer(
    kind: str, options: dict[str, str], setting: str | None, documents: str
) -> None:
    entry = ScorerEntry(kind=kind, options=options, fingerprint="f")
    manifest = Manifest.model_construct(config={"kind": setting}, scorers={"column": entry}, sources=[])
    assert document_kind(manifest, "column") == documents
