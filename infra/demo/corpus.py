"""Two corpora that every machine has: the standard library's code, and the documentation of installed packages."""

import gzip
import importlib.metadata
import json
import random
import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Larger files would make the sample a matter of a few modules.
LARGEST_MODULE = 60_000
LARGEST_PAGE = 30_000
# Fixtures of test suites hold code that is wrong on purpose, in encodings of every kind.
TEST_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "__pycache__"})
PAGE_SUFFIXES = frozenset({".md", ".rst"})


@dataclass(frozen=True)
class Sample:
    """What was put into a corpus: documents and bytes of text."""

    documents: int
    size: int


def sample_code(folder: Path, limit: int, seed: int) -> Sample:
    """Copy a seeded sample of the running interpreter's standard library, at most `limit` bytes, into `folder`."""
    library = Path(sysconfig.get_path("stdlib"))
    modules = sorted(
        path
        for path in library.rglob("*.py")
        if not TEST_FOLDERS.intersection(path.relative_to(library).parts) and 0 < path.stat().st_size <= LARGEST_MODULE
    )
    random.Random(seed).shuffle(modules)
    documents = size = 0
    for module in modules:
        if size + module.stat().st_size > limit or not _is_utf8(module):
            continue
        target = folder / module.relative_to(library)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(module, target)
        documents += 1
        size += module.stat().st_size
    return Sample(documents, size)


def sample_prose(file: Path, limit: int, seed: int) -> Sample:
    """Write a seeded sample of installed packages' descriptions and pages, at most `limit` bytes, as `.jsonl.gz`."""
    pages = sorted(_pages(), key=lambda page: page["id"])
    random.Random(seed).shuffle(pages)
    documents = size = 0
    file.parent.mkdir(parents=True, exist_ok=True)
    # No name and no time in its header: the same sample gives the same bytes, and so the same fingerprint of the input.
    with file.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as stream:
        for page in pages:
            length = len(page["text"].encode())
            if size + length > limit:
                continue
            stream.write(json.dumps(page, ensure_ascii=False).encode() + b"\n")
            documents += 1
            size += length
    return Sample(documents, size)


def _pages() -> Iterator[dict[str, str]]:
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        name = distribution.name
        if name is None or name in seen:
            continue
        seen.add(name)
        description = distribution.metadata.json.get("description")
        if isinstance(description, str) and description.strip() and len(description) <= LARGEST_PAGE:
            yield {"id": f"{name}/description", "text": _without_surrogates(description), "package": name}
        for file in distribution.files or ():
            path = Path(str(distribution.locate_file(file)))
            if path.suffix not in PAGE_SUFFIXES or not path.is_file() or path.stat().st_size > LARGEST_PAGE:
                continue
            if _is_utf8(path):
                yield {"id": f"{name}/{file}", "text": path.read_text(encoding="utf-8"), "package": name}


def _without_surrogates(text: str) -> str:
    # The metadata parser escapes bytes that are no UTF-8 as surrogates.
    return text.encode("utf-8", "replace").decode()


def _is_utf8(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True
