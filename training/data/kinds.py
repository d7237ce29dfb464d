"""What the documents of a score column are."""

from pipeline.dataset import Manifest
from scorers.contract import DocumentKind

_PYTHON_SCORERS = {"pycodestyle", "pylint"}


def document_kind(manifest: Manifest, column: str) -> DocumentKind:
    """What a column's documents are: as the labelling job was told, or what its scorer applies to, or most bytes."""
    asked = manifest.config.get("kind")
    if asked == "python" or asked == "prose":
        return "python" if asked == "python" else "prose"
    entry = manifest.scorers[column]
    applies = "python" if entry.kind in _PYTHON_SCORERS else entry.options.get("documents")
    if applies in ("python", "prose"):
        return "python" if applies == "python" else "prose"
    python = sum(source.size for source in manifest.sources if source.uri.lower().endswith(".py"))
    return "python" if 2 * python > sum(source.size for source in manifest.sources) else "prose"
