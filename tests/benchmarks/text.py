"""Real text for benchmarks: prose from your own corpus or from this machine, and code of Python's library."""

import gzip
import json
import os
import sysconfig
import tempfile
from itertools import islice
from pathlib import Path

from infra.demo.corpus import sample_prose

# Names a .jsonl or .jsonl.gz with a field `text`, such as the web mix behind the figures in README.md.
CORPUS_VARIABLE = "PHF_BENCH_CORPUS"


def prose(documents: int | None = None, size: int = 2_000_000) -> list[str]:
    """The first texts of the corpus that the environment names, or of the documentation of installed packages.

    Of the documentation at most `size` bytes are taken, as far as there are so many.
    """
    named = os.environ.get(CORPUS_VARIABLE)
    if named:
        return _texts(Path(named), documents)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prose.jsonl.gz"
        sample_prose(path, size, seed=1)
        return _texts(path, documents)


def code(files: int, smallest: int = 500, largest: int = 50_000) -> list[str]:
    """Modules of Python's standard library, without tests, in an order that does not depend on the machine."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found = [
        path
        for path in sorted(library.rglob("*.py"))
        if smallest <= path.stat().st_size <= largest
        and not {"site-packages", "test", "tests", "lib2to3", "idlelib"} & set(path.parts)
    ]
    step = max(len(found) // files, 1)
    return [path.read_text(encoding="utf-8", errors="replace") for path in found[::step][:files]]


def _texts(path: Path, documents: int | None) -> list[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in islice(lines, documents)]
