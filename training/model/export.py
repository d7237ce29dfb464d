"""The finished model as a Hugging Face folder: weights, tokenizer, and a generation config that bans control tokens."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from training.data.tokenizers import save_tokenizer
from training.disk import os_errors
from training.model.language_model import VALUE_HEAD_FILE

_CAUSAL, _VALUES = "causal.", "value_head."


def export_model(
    folder: Path,
    causal: Any,
    weights: Mapping[str, Tensor],
    tokenizer: Any,
    *,
    eos_id: int,
    control_ids: Sequence[int] = (),
    context_length: int | None = None,
    card: str | None = None,
) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load; it is there whole or not at all.

    Args:
        folder: replaced if it exists.
        causal: the Hugging Face model, for its config; its weights are not read.
        weights: of the `LanguageModel`, on the CPU. A value head goes into a file of its own.
        tokenizer: the Hugging Face tokenizer, with its control tokens if the model has any.
        eos_id: the token that ends a text, and begins one.
        control_ids: tokens that generation must never emit.
        context_length: tokens that it was trained to read at most.
        card: the folder's `README.md`.

    Raises:
        OSError: the folder cannot be written; nothing is left of it, and one that was there stays.
    """
    from safetensors.torch import save_file
    from transformers import GenerationConfig
    from transformers.utils import logging

    # It would draw a bar for the one file it writes.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    staging = folder.with_name(f".{folder.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    causal.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=eos_id, eos_token_id=eos_id, pad_token_id=eos_id, suppress_tokens=list(control_ids) or None
    )
    values = {name.removeprefix(_VALUES): each for name, each in weights.items() if name.startswith(_VALUES)}
    try:
        with os_errors():
            causal.save_pretrained(
                staging,
                state_dict={
                    name.removeprefix(_CAUSAL): each for name, each in weights.items() if name.startswith(_CAUSAL)
                },
            )
            if values:
                save_file({name: each.float().contiguous() for name, each in values.items()}, staging / VALUE_HEAD_FILE)
            save_tokenizer(tokenizer, staging, context_length)
            if card is not None:
                (staging / "README.md").write_text(card, encoding="utf-8")
            # Safetensors lets nobody else read its files, whatever the umask.
            mode = (staging / "config.json").stat().st_mode
            for file in staging.iterdir():
                file.chmod(mode)
        replaced = folder.with_name(f".{folder.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        staging.rename(folder)
    finally:
        # Where it was not moved, so as to leave room.
        shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)
