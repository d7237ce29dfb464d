"""Recognise files and folders that phf and its libraries write, which are not inputs even inside a corpus."""

import json
from collections.abc import Collection

# Names that identify a folder written by phf: a labelling job, a sealed dataset, a training run, a token store, and the
# output of `phf evaluate`.
_FOLDERS = (
    {"job/config.json"},
    {"manifest.json", "data/", "ledger/"},
    {"run.json", "config.yaml"},
    {"store.json", "tokens.arrow"},
    {"report.json", "samples.parquet"},
)
# A folder with any of these is a model or tokenizer; `_OF_MODEL` lists the other files that transformers writes there.
_MODEL = frozenset({"tokenizer_config.json", "tokenizer.json", "config.json"})
_OF_MODEL = _MODEL | {
    *("generation_config.json", "special_tokens_map.json", "added_tokens.json", "preprocessor_config.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "model.safetensors.index.json", "pytorch_model.bin.index.json"),
}
# Keys of every line that `--log` writes; keys of which a configuration for `--config` has one besides `scorers`.
_LOG = {"timestamp", "level", "event", "run", "epoch"}
_CONFIG = {"inputs", "output", "dataset", "execution"}


def is_own_folder(names: Collection[str]) -> bool:
    """Whether phf wrote a folder, judged by the names in it; names of folders end with a slash."""
    return any(mark <= set(names) for mark in _FOLDERS)


def model_files(names: Collection[str]) -> set[str]:
    """The names in a folder that belong to a model or tokenizer."""
    return set(_OF_MODEL.intersection(names)) if _MODEL.intersection(names) else set()


def is_own_file(head: bytes) -> bool:
    """Whether a file is a log of `--log` or a configuration of phf, judged by its first line."""
    first = _first_object(head)
    return first is not None and (
        first.keys() >= _LOG or (isinstance(first.get("scorers"), dict) and not _CONFIG.isdisjoint(first))
    )


def is_settings(head: bytes) -> bool:
    """Whether a file is one JSON object over several lines, judged by its beginning."""
    first, _, rest = head.strip(b"\xef\xbb\xbf \t\r\n").partition(b"\n")
    following = rest.lstrip()
    return first.startswith(b"{") and following[:1] not in (b"", b"{") and _first_object(first) is None


def _first_object(head: bytes) -> dict[str, object] | None:
    try:
        first = json.loads(head.split(b"\n", 1)[0])
    except (ValueError, RecursionError):
        return None
    return first if isinstance(first, dict) else None
