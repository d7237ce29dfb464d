"""Sample two corpora that every machine has: the standard library's code, and documentation of installed packages."""

import gzip
import json
import random
import re
import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Leave out larger files, so that the sample holds more than a few modules.
LARGEST_MODULE = 60_000
LARGEST_PAPER = 300_000
# In characters; leaves out headings and tables.
SHORTEST_PARAGRAPH, LONGEST_PARAGRAPH = 60, 2_000
# Fixtures of test suites hold code that is wrong on purpose, in all kinds of encodings.
TEST_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "__pycache__"})
PAPER = re.compile(r"(?i)(readme|authors|contributors|licen[cs]e|copying|notice)([-._].*)?$|.*\.(md|rst)$")
_PARAGRAPHS = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Sample:
    """The number of documents in a sampled corpus, and its size in bytes of text."""

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
        if size + module.stat().st_size > limit or _text(module) is None:
            continue
        target = folder / module.relative_to(library)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(module, target)
        documents += 1
        size += module.stat().st_size
    return Sample(documents, size)


def sample_prose(file: Path, limit: int, seed: int) -> Sample:
    """Write a seeded sample of paragraphs from installed packages' documentation, at most `limit` bytes, as gzip JSONL.

    A paragraph shared by several packages, such as one of a licence, occurs once.
    """
    found: dict[str, str] = {}
    for name, text in _papers():
        for number, paragraph in enumerate(_PARAGRAPHS.split(text)):
            if SHORTEST_PARAGRAPH <= len(paragraph.strip()) <= LONGEST_PARAGRAPH:
                found.setdefault(paragraph.strip(), f"{name}#{number}")
    paragraphs = list(found.items())
    random.Random(seed).shuffle(paragraphs)
    documents = size = 0
    file.parent.mkdir(parents=True, exist_ok=True)
    # No name and time in the gzip header, so that the same sample gives the same bytes and the same input fingerprint.
    with file.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as stream:
        for text, place in paragraphs:
            length = len(text.encode())
            if size + length > limit:
                continue
            stream.write(json.dumps({"id": place, "text": text}, ensure_ascii=False).encode() + b"\n")
            documents += 1
            size += length
    return Sample(documents, size)


def _papers() -> Iterator[tuple[str, str]]:
    """Yield path and text of installed packages' documentation, sorted: metadata, READMEs, authors, licences."""
    library = Path(sysconfig.get_path("purelib"))
    papers = {
        path
        for pattern in ("*.dist-info/METADATA", "*.dist-info/**/*", "*/*", "*/docs/*")
        for path in library.glob(pattern)
        if path.name == "METADATA" or (PAPER.match(path.name) and path.suffix != ".py")
    }
    for path in sorted(papers):
        if path.is_file() and path.stat().st_size <= LARGEST_PAPER and (text := _text(path)) is not None:
            yield str(path.relative_to(library)), text


def _text(path: Path) -> str | None:
    """Return the text of a file; None if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
