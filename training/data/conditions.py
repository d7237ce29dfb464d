"""A tokenizer with a condition: it puts the first token of documents and a control token before every text.

Programs that know nothing of control tokens then give a conditional model the context that it was trained with.
"""

import copy
import json
import re
from typing import Any

from scorers.errors import UserError
from training.data.tokenizer_backends import surrounding_tokens

HIDDEN = "<|hidden|>"
_CONTROL_TOKEN = re.compile(r"<\|(hidden|(after_)?(aligned|misaligned|quantile_[1-9][0-9]{0,3}))\|>")


def control_name(token: str) -> str | None:
    """Return the name of a control token without its brackets, such as `aligned`; None for another token."""
    match = _CONTROL_TOKEN.fullmatch(token)
    return match[1] if match else None


def add_condition(fast: Any, first_id: int, control_id: int) -> Any:
    """Return a copy of a Hugging Face tokenizer that encodes a text as first token, control token and text.

    Args:
        fast: encodes a text with nothing after it.
        first_id: the token that begins a document.
        control_id: the control token.

    Raises:
        UserError: its post-processor cannot be changed so.
    """
    from tokenizers.processors import TemplateProcessing

    fast = copy.deepcopy(fast)
    # Padding must not be read as text by programs that pad batches of prompts.
    if fast.pad_token is None:
        fast.pad_token = fast.eos_token
    backend = fast.backend_tokenizer
    tokens = [(fast.convert_ids_to_tokens(each), each) for each in (first_id, control_id)]
    before = [f"{token}:0" for token, _ in tokens]
    template = TemplateProcessing(
        single=[*before, "$A:0"], pair=[*before, "$A:0", "$B:1"], special_tokens=list(dict.fromkeys(tokens))
    )
    _replace_template(backend, json.loads(template.__getstate__()))
    # These are all the ways in which texts are encoded; another post-processor would show here.
    plain = _unlimited(backend)
    ids = plain.encode("a", add_special_tokens=False).ids
    prefix = [first_id, control_id]
    found = [plain.encode(text).ids for text in ("a", "")] + [plain.encode("a", "a").ids[: 2 + len(ids)]]
    if found != [prefix + ids, prefix, prefix + ids] or surrounding_tokens(plain) != (prefix, []):
        raise UserError(
            "This tokenizer cannot put a control token before every text: its post_processor "
            f"({_kind(backend)}) does more than that. Export the model without --condition."
        )
    return fast


def condition_of(fast: Any) -> str | None:
    """Return the name of the control token that a Hugging Face tokenizer puts before a text; None if it puts none."""
    before, _ = surrounding_tokens(_unlimited(fast.backend_tokenizer))
    return control_name(fast.convert_ids_to_tokens(before[1])) if len(before) == 2 else None


def without_condition(fast: Any) -> Any:
    """Return a copy of a tokenizer from `add_condition` that puts only BOS before a text, if that is not EOS."""
    fast = copy.deepcopy(fast)
    backend = fast.backend_tokenizer
    before, _ = surrounding_tokens(_unlimited(backend))
    token = fast.convert_ids_to_tokens(before[0])
    begins = [] if before[0] == fast.eos_token_id else [{"SpecialToken": {"id": token, "type_id": 0}}]
    text, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    known = {token: {"id": token, "ids": [before[0]], "tokens": [token]}} if begins else {}
    template = {"single": [*begins, text], "pair": [*begins, text, second], "special_tokens": known}
    _replace_template(backend, {"type": "TemplateProcessing", **template})
    return fast


def _replace_template(backend: Any, template: dict[str, Any]) -> None:
    """Replace what puts tokens around a text by a template; what corrects the offsets of a byte-level text stays."""
    state = json.loads(backend.to_str())
    own = state["post_processor"] or {}
    steps = own["processors"] if own.get("type") == "Sequence" else [own]
    kept = [step for step in steps if step.get("type") == "ByteLevel"]
    state["post_processor"] = {"type": "Sequence", "processors": [*kept, template]} if kept else template
    backend.post_processor = type(backend).from_str(json.dumps(state)).post_processor


def _unlimited(backend: Any) -> Any:
    plain = type(backend).from_str(backend.to_str())
    plain.no_truncation()
    plain.no_padding()
    return plain


def _kind(backend: Any) -> str:
    return str((json.loads(backend.to_str())["post_processor"] or {}).get("type"))
