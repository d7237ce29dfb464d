"""Input limits and content hashes of transformers models, and loading them without log output."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from logging import CRITICAL, getLogger
from typing import Any

# Families that number positions from the padding token's id plus one, so that part of the table is never used.
_OFFSET_POSITIONS = frozenset(
    (
        *("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "mpnet", "longformer"),
        *("data2vec-text", "ibert", "esm", "luke", "mluke"),
    )
)

# A tokenizer without a limit reports more than this.
_NO_LIMIT = 1_000_000
_USUAL_LIMIT = 512


def longest_input(config: Any, tokenizer: Any) -> int:
    """Return how many tokens a model takes, special ones included, by its position table and its tokenizer."""
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length <= _NO_LIMIT else []
    positions = getattr(config, "max_position_embeddings", None)
    if positions and positions > 0:
        offset = config.model_type in _OFFSET_POSITIONS
        limits.append(positions - config.pad_token_id - 1 if offset else positions)
    return int(min(limits, default=_USUAL_LIMIT))


def content_sha256(model: Any, tokenizer: Any) -> dict[str, str]:
    """Return the hashes of the configuration and the tokenizer, wherever they were read from."""
    config = {
        key: value
        for key, value in model.config.to_dict().items()
        if key not in ("_name_or_path", "transformers_version")
    }
    facts = {
        "config": json.dumps(config, sort_keys=True, default=str),
        "tokenizer": f"{tokenizer.backend_tokenizer.to_str()}\0{tokenizer.model_max_length}",
    }
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in facts.items()}


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and loading reports of transformers; we check what matters in them ourselves."""
    from transformers.utils import logging as transformers_logging

    # Untyped in transformers.
    library: Any = transformers_logging
    hub = getLogger("huggingface_hub")
    verbosity, bars, hub_level = library.get_verbosity(), library.is_progress_bar_enabled(), hub.level
    library.set_verbosity(CRITICAL)
    library.disable_progress_bar()
    hub.setLevel(CRITICAL)
    try:
        yield
    finally:
        hub.setLevel(hub_level)
        library.set_verbosity(verbosity)
        if bars:
            library.enable_progress_bar()
