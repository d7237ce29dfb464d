"""Facts about each kind of scorer on this machine."""

import inspect
from typing import Any

from scorers import registry
from scorers.errors import UserError


def list_kinds() -> list[dict[str, Any]]:
    """Return one entry per kind, as JSON values: its columns, its options, and what its defaults lack to run here."""
    return [_describe_kind(kind) for kind in registry.kinds()]


def _describe_kind(kind: str) -> dict[str, Any]:
    columns = [column for column, default in registry.DEFAULT_KINDS.items() if default == kind]
    entry: dict[str, Any] = {"kind": kind, "columns": columns, "score": "", "options": {}, "runs_on_gpu": False}
    try:
        spec = registry.ScorerSpec(kind=kind)
        scorer = registry.scorer_type(kind)
        entry["score"] = (inspect.getdoc(scorer) or "").partition("\n\n")[0].replace("\n", " ")
        entry["runs_on_gpu"] = scorer.runs_on_gpu
        entry["options"] = registry.resolve(kind, spec).options
        registry.check(kind, spec)
    except UserError as error:
        return {**entry, "ready": False, "missing": str(error)}
    return {**entry, "ready": True, "missing": None}
