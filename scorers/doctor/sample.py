"""Sample text to measure a scorer on, present on every machine: Python's language reference and standard library."""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from scorers.contract import DocumentKind

# About as long as a short web page.
_PROSE_CHARACTERS = 1_500
_CODE_BYTES = (500, 12_000)
_NOT_TYPICAL = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"})


def sample(kind: DocumentKind) -> Iterator[str]:
    """Yield distinct real documents, shuffled in the same way on every machine.

    Prose is 450 kB of the language reference that `help()` shows, cut between paragraphs; code is 4 MB of modules.
    """
    return _modules() if kind == "python" else iter(sorted(_pieces(), key=_shuffled))


def _pieces() -> Iterator[str]:
    from pydoc_data.topics import topics

    for text in topics.values():
        piece = ""
        for paragraph in text.split("\n\n"):
            piece += paragraph + "\n\n"
            if len(piece) >= _PROSE_CHARACTERS:
                yield piece
                piece = ""
        if piece.strip():
            yield piece


def _modules() -> Iterator[str]:
    library = Path(sysconfig.get_path("stdlib"))
    names = [path.relative_to(library) for path in library.rglob("*.py")]
    smallest, largest = _CODE_BYTES
    for name in sorted(names, key=lambda each: _shuffled(each.as_posix())):
        if _NOT_TYPICAL.isdisjoint(name.parts) and smallest <= (library / name).stat().st_size <= largest:
            yield (library / name).read_text(encoding="utf-8", errors="replace")


def _shuffled(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
