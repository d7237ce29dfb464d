"""What phf and its libraries write that holds no records: no input, wherever a folder of inputs holds it."""

import json
from collections.abc import Collection

# Names by which a folder of ours is known: a labelling job, a sealed dataset, a training run, a token store, and what
# `phf evaluate` writes.
_FOLDERS = (
    {"job/config.json"},
    {"manifest.json", "data/", "ledger/"},
    {"run.json", "config.yaml"},
    {"store.json", "tokens.arrow"},
    {"report.json", "samples.parquet"},
)
# Of a folder with any of these, what transformers writes into a model or tokenizer.
_MODEL = frozenset({"tokenizer_config.json", "tokenizer.json", "config.json"})
_OF_MODEL = _MODEL | {
    *("generation_config.json", "special_tokens_map.json", "added_tokens.json", "preprocessor_config.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "model.safetensors.index.json", "pytorch_model.bin.index.json"),
}
# Keys of every line that `--log` writes; and of a configuration for `--config` one beside its scorers.
_LOG = {"timestamp", "level", "event", "run", "epoch"}
_CONFIG = {"inputs", "output", "dataset", "execution"}


def is_own_folder(names: Collection[str]) -> bool:
    """Whether a folder is one of ours, by the names in it; those of folders end with a slash."""
    return any(mark <= set(names) for mark in _FOLDERS)


def names_of_model(names: Collection[str]) -> set[str]:
    """Those of the names in a folder that belong to a model or a tokenizer."""
    return set(_OF_MODEL.intersection(names)) if _MODEL.intersection(names) else set()


def is_own_file(head: bytes) -> bool:
    """Whether a file of JSON lines is a log of `--log` or a configuration, by its first line."""
    first = _first_object(head)
    return first is not None and (
        first.keys() >= _LOG or (isinstance(first.get("scorers"), dict) and not _CONFIG.isdisjoint(first))
    )


def is_settings(head: bytes) -> bool:
    """Whether a file is one JSON object over several lines, by its beginning."""
    first, _, rest = head.strip(b"\xef\xbb\xbf \t\r\n").partition(b"\n")
    following = rest.lstrip()
    return first.startswith(b"{") and following[:1] not in (b"", b"{") and _first_object(first) is None


def _first_object(head: bytes) -> dict[str, object] | None:
    try:
        first = json.loads(head.split(b"\n", 1)[0])
    except (ValueError, RecursionError):
        return None
    return first if isinstance(first, dict) else None
