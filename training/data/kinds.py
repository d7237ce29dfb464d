"""What the documents of a score column are."""

from pipeline.dataset import Manifest
from scorers.contract import DocumentKind
from scorers.registry import ScorerSpec, documents_of


def document_kind(manifest: Manifest, column: str) -> DocumentKind:
    """What a column's documents are: the job's setting, or what its scorer applies to, or most bytes."""
    asked = manifest.config.get("kind")
    if asked == "python" or asked == "prose":
        return "python" if asked == "python" else "prose"
    entry = manifest.scorers[column]
    applies = documents_of(ScorerSpec(kind=entry.kind, **entry.options))
    if applies is not None:
        return applies
    python = sum(source.size for source in manifest.sources if source.uri.lower().endswith(".py"))
    return "python" if 2 * python > sum(source.size for source in manifest.sources) else "prose"
