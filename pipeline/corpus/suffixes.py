"""Derive the format, compression and kind of a file from its name."""

from itertools import product
from typing import Literal

from pipeline.corpus.compression import Compression
from scorers.contract import DocumentKind

Format = Literal["jsonl", "parquet", "arrow", "warc", "text"]

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".wet": "warc",
    ".warc": "warc",
    ".txt": "text",
    ".py": "text",
}
_COMPRESSIONS: dict[str, Compression] = {
    ".gz": "gzip",
    ".gzip": "gzip",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".bz2": "bz2",
    ".xz": "xz",
}
# Some writers name the codec of the pages after the suffix `.parquet`; names with it before end with `.parquet` anyway.
_PARQUET_CODECS = (".gz", ".gzip", ".snappy", ".zst", ".zstd", ".br", ".brotli", ".lz4", ".lzo")
_SUFFIXES: dict[str, tuple[Format, Compression | None]] = {
    ".parquet": ("parquet", None),
    ".arrow": ("arrow", None),
    **{suffix: (name, None) for suffix, name in _FORMATS.items()},
    **{
        suffix + packed: (name, compression)
        for (suffix, name), (packed, compression) in product(_FORMATS.items(), _COMPRESSIONS.items())
    },
    **{f".parquet{codec}": ("parquet", None) for codec in _PARQUET_CODECS},
}
KNOWN = (
    ".jsonl, .ndjson, .json, .txt, .py, .warc and .wet, each also compressed (.jsonl.gz, .jsonl.zst, .jsonl.bz2, "
    ".jsonl.xz), .parquet and .arrow"
)
# Metadata files that `datasets` writes next to a saved dataset.
_OF_SAVED_DATASETS = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
_LONGEST_TYPE = 12


def format_of(path: str) -> tuple[Format, Compression | None] | None:
    """Format and compression of a file; None if its suffix is unknown."""
    name = _name(path).lower()
    return next((_SUFFIXES[suffix] for suffix in _SUFFIXES if name.endswith(suffix) and name != suffix), None)


def kind_of(path: str, kind: str) -> DocumentKind:
    """The kind of a file's documents: `kind`, or for `auto` Python for `.py` and prose for everything else."""
    if kind != "auto":
        return "python" if kind == "python" else "prose"
    return "python" if document_name(path).lower().endswith(".py") else "prose"


def document_name(path: str) -> str:
    """The base name of a file that is one document, without the suffix of its compression."""
    name = _name(path)
    packed = next((each for each in _COMPRESSIONS if name.lower().endswith(each)), "")
    return name.removesuffix(name[len(name) - len(packed) :]) if packed else name


def is_skipped(path: str) -> bool:
    """Whether folders and globs skip a file: a hidden file, or metadata or cache of a saved dataset of `datasets`."""
    name = _name(path)
    return name.startswith(".") or (name.startswith("cache-") and name.endswith(".arrow")) or name in _OF_SAVED_DATASETS


def may_be_settings(path: str) -> bool:
    """Whether a file may hold settings (one JSON object over many lines) rather than records."""
    return _name(path).lower().endswith(".json")


def type_of(path: str) -> str:
    """The suffix to list a file under; empty if it has none."""
    parts = [f".{part}" for part in _name(path).lower().split(".")[1:]]
    if len(parts) > 1 and parts[-1] in _COMPRESSIONS and _is_type(parts[-2]):
        return "".join(parts[-2:])
    return parts[-1] if parts and _is_type(parts[-1]) else ""


def _is_type(suffix: str) -> bool:
    return suffix[1:].isalnum() and suffix.isascii() and len(suffix) <= _LONGEST_TYPE and not suffix[1:].isdigit()


def _name(path: str) -> str:
    return path.rpartition("/")[2]
