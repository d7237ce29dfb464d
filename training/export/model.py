"""Write a model as a Hugging Face folder: weights, tokenizer, and a generation config that bans control tokens."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from scorers import hugging_face
from training.data.conditions import add_condition
from training.data.tokenizer_backends import begin_with_bos
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
    bos_id: int | None = None,
    control_ids: Sequence[int] = (),
    condition_id: int | None = None,
    sampling: Mapping[str, Any] | None = None,
    context_length: int | None = None,
    card: str | None = None,
) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load, atomically.

    Args:
        folder: replaced if it exists.
        causal: the Hugging Face model, for its config; its weights are not read.
        weights: weights of the `LanguageModel`, on the CPU. A value head goes into a folder of its own.
        tokenizer: the Hugging Face tokenizer, with its control tokens if the model has any.
        eos_id: the token that ends a text.
        bos_id: the token that begins a text; None for `eos_id`.
        control_ids: tokens that generation must never emit.
        condition_id: the control token that the tokenizer puts before every text; None for none.
        sampling: further fields of the generation config.
        context_length: maximum number of tokens that the model was trained to read.
        card: content of `README.md`.

    Raises:
        OSError: the folder cannot be written; an existing one is left untouched.
        UserError: the tokenizer cannot put a control token before a text.
    """
    from safetensors.torch import save_file
    from transformers import GenerationConfig
    from transformers.utils import logging

    # transformers would draw a progress bar for the one file that it writes.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    begins_with = eos_id if bos_id is None else bos_id
    tokenizer = begin_with_bos(tokenizer, begins_with, eos_id)
    if condition_id is not None:
        tokenizer = add_condition(tokenizer, begins_with, condition_id)
    staging = folder.with_name(f".{folder.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    # BOS only begins a document, so it is no more text than a control token.
    banned = [*control_ids, *({begins_with} - {eos_id})]
    causal.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=begins_with,
        eos_token_id=eos_id,
        pad_token_id=eos_id,
        suppress_tokens=banned or None,
        **(sampling or {}),
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
            _name_rotations(staging / "config.json")
            if values:
                (staging / VALUE_HEAD_FILE).parent.mkdir()
                save_file({name: each.float().contiguous() for name, each in values.items()}, staging / VALUE_HEAD_FILE)
            save_tokenizer(tokenizer, staging, context_length)
            if card is not None:
                (staging / "README.md").write_text(card, encoding="utf-8")
            # Safetensors makes its files private whatever the umask: give them the mode of the others.
            mode = (staging / "config.json").stat().st_mode
            for file in staging.rglob("*"):
                if file.is_file():
                    file.chmod(mode)
        replaced = folder.with_name(f".{folder.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        staging.rename(folder)
    finally:
        # If it was not moved into place, free its space.
        shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def _name_rotations(file: Path) -> None:
    """Add the parameters of rotary positions to a config under the names of transformers 4.

    Version 5 writes only `rope_parameters`, which version 4 does not read: it would silently use its defaults. A config
    that version 5 would then read differently is left unchanged: version 4 does not have its architecture.
    """
    written = file.read_text(encoding="utf-8")
    config = json.loads(written)
    parameters = config.get("rope_parameters") or {}
    local = parameters.get("sliding_attention")
    rotations = dict(parameters.get("full_attention", parameters) or {})
    base, share = rotations.pop("rope_theta", None), rotations.pop("partial_rotary_factor", None)
    names = {"rope_theta": base, "rotary_emb_base": base, "partial_rotary_factor": share, "rotary_pct": share}
    names["rope_local_base_freq"] = local and local.get("rope_theta")
    names["rope_scaling"] = rotations if rotations.get("rope_type", "default") != "default" else None
    for name, value in names.items():
        # Only GPT-NeoX has names that begin with `rotary_`.
        if value is not None and (config["model_type"] == "gpt_neox" or not name.startswith("rotary_")):
            config[name] = value
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    try:
        read = hugging_face.load_config(str(file.parent)).to_dict()
    except (KeyError, ValueError, TypeError, AttributeError):
        read = {}
    same = read.get("rope_parameters") == config.get("rope_parameters")
    if not same:
        file.write_text(written, encoding="utf-8")
