"""Where the weights of a scorer lie."""

import contextlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scorers.errors import UserError
from scorers.registry import ScorerSpec


def places(spec: ScorerSpec) -> list[str]:
    """Files and folders that a scorer with these options, all filled in, reads its weights and models from.

    Options that hold a path count, for any kind of scorer; names of models are looked up for the kinds of our own.
    """
    found = [value for value in spec.options.values() if isinstance(value, str) and _is_path(value)]
    with contextlib.suppress(UserError):  # what is missing is the scorer's to say
        found += _named(spec.kind, spec.options)
    return found


def _is_path(value: str) -> bool:
    return "/" in value and Path(value).exists()


def _named(kind: str, options: dict[str, Any]) -> list[str]:
    if kind == "detoxify":
        from scorers.classifiers import detoxify_model

        file = detoxify_model.VARIANTS.get(options["model"])
        return [str(detoxify_model.hub_folder() / file)] if file else []
    if kind == "linear":
        from scorers.linear import find_files

        return [str(find_files())]
    if kind == "scrubadub":
        from scorers.pii.entities import find_model

        if "/" in (name := find_model(options["spacy_model"])):
            return [name]
        module = find_spec(name)
        return [str(Path(module.origin).parent)] if module and module.origin else []
    return []
