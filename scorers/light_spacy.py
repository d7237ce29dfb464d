"""Import spaCy without torch.

spaCy's library Thinc imports torch wherever it is installed, for layers that are torch modules. The pipelines that
split sentences or find entities here have none, and torch takes 190 MB and two seconds of a process.
"""

import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

# Packages for spaCy pipelines with layers of torch.
_WITH_TORCH = ("spacy_curated_transformers", "spacy_transformers")


class _NoTorch:
    """A finder with which `import torch` fails, in the thread that creates it."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "torch" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError("not imported for spaCy", name=name)
        return None


def import_spacy() -> None:
    """Import spaCy; without torch, unless a package is installed whose pipelines need it.

    Others may import torch before or later, but Thinc, which decides once, will not use it.
    """
    finder = _NoTorch()
    if not any(map(find_spec, _WITH_TORCH)):
        sys.meta_path.insert(0, finder)
    try:
        import spacy  # noqa: F401
    finally:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)
