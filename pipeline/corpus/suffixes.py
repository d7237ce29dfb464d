"""What a file holds, by its name."""

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
# How the pages of a Parquet file are compressed is written behind its suffix by some, before it by others.
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
# What `datasets` keeps beside the files of a saved dataset.
_OF_SAVED_DATASETS = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
_LONGEST_TYPE = 12


def format_of(path: str) -> tuple[Format, Compression | None] | None:
    """Format and compression of a file; None where its suffix is unknown."""
    name = _name(path).lower()
    return next((_SUFFIXES[suffix] for suffix in _SUFFIXES if name.endswith(suffix) and name != suffix), None)


def kind_of(path: str, kind: str) -> DocumentKind:
    """What the documents of a file are: as `kind` says, or Python where `auto` meets `.py`."""
    if kind != "auto":
        return "python" if kind == "python" else "prose"
    return "python" if document_name(path).lower().endswith(".py") else "prose"


def document_name(path: str) -> str:
    """The base name of a file that is one document, without the suffix of its compression."""
    name = _name(path)
    packed = next((each for each in _COMPRESSIONS if name.lower().endswith(each)), "")
    return name.removesuffix(name[len(name) - len(packed) :]) if packed else name


def is_aside(path: str) -> bool:
    """Whether folders and globs leave a file out: a hidden one, or what `datasets` keeps beside a saved dataset."""
    name = _name(path)
    return name.startswith(".") or (name.startswith("cache-") and name.endswith(".arrow")) or name in _OF_SAVED_DATASETS


def may_be_settings(path: str) -> bool:
    """Whether a file may be one JSON object over many lines: a setting, not records."""
    return _name(path).lower().endswith(".json")


def type_of(path: str) -> str:
    """The suffix by which people know a type of files; empty where there is none."""
    parts = [f".{part}" for part in _name(path).lower().split(".")[1:]]
    if len(parts) > 1 and parts[-1] in _COMPRESSIONS and _is_type(parts[-2]):
        return "".join(parts[-2:])
    return parts[-1] if parts and _is_type(parts[-1]) else ""


def _is_type(suffix: str) -> bool:
    return suffix[1:].isalnum() and suffix.isascii() and len(suffix) <= _LONGEST_TYPE and not suffix[1:].isdigit()


def _name(path: str) -> str:
    return path.rpartition("/")[2]
