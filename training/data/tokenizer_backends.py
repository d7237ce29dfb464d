"""Adjust backends of the `tokenizers` library: prefix spaces, surrounding special tokens, token names in a text."""

import copy
import json
import re
from itertools import takewhile
from typing import Any


def remove_prefix(backend: Any) -> Any | None:
    """Return a copy of a `tokenizers.Tokenizer` that adds no prefix space, for sentences inside a document.

    Llama, Mistral and T5 (SentencePiece) add one, and so does GPT-2 with `add_prefix_space`. It belongs at the
    beginning of a text, not in the middle.

    Returns:
        None if the backend adds no space, or if the space replaces one that was stripped from the preceding text.
    """
    state = json.loads(backend.to_str())
    state["normalizer"] = _without_prepend(state["normalizer"])
    for step in _steps(state["pre_tokenizer"]):
        if step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
        elif step["type"] == "ByteLevel":
            step["add_prefix_space"] = False
    if state == json.loads(backend.to_str()):
        return None
    # Some drop the spaces between words: T5's splits at them and puts one before each word.
    if _ids(backend, "a ") == _ids(backend, "a"):
        return None
    plain: Any = type(backend).from_str(json.dumps(state))
    plain.encode_special_tokens = backend.encode_special_tokens
    return plain


def read_names_as_text(backend: Any) -> Any | None:
    """Return a copy that encodes the names of special tokens and bytes, such as `</s>` and `<0x0A>`, as plain text.

    Unlike SentencePiece, a unigram model of the `tokenizers` library matches these names in a text like any other entry
    of its vocabulary. The copy splits each name in two.

    Args:
        backend: a `tokenizers.Tokenizer` with `encode_special_tokens` set.

    Returns:
        None if the backend already encodes them as plain text.

    Raises:
        ValueError: the copy still encodes a name as its token; the message is the name.
    """
    names = {token.content: number for number, token in backend.get_added_tokens_decoder().items() if token.special}
    names |= {name: backend.token_to_id(name) for name in (f"<0x{number:02X}>" for number in range(256))}
    found = [name for name, number in names.items() if _reads_as_token(backend, name, number)]
    if not found:
        return None
    state = json.loads(backend.to_str())
    # Group by first character: there are few, so other text stays fast.
    rests = {first: [name[1:] for name in found if name[:1] == first] for first in {name[:1]: None for name in found}}
    parts = "|".join(f"{re.escape(first)}(?={'|'.join(map(re.escape, rest))})" for first, rest in rests.items())
    split = {"type": "Split", "pattern": {"Regex": parts}, "behavior": "MergedWithPrevious", "invert": False}
    before = state["pre_tokenizer"]
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*([before] if before else []), split]}
    plain: Any = type(backend).from_str(json.dumps(state))
    plain.encode_special_tokens = True
    model = state["model"]
    unknown = model.get("unk_token") or (
        model["vocab"][model["unk_id"]][0] if model.get("unk_id") is not None else None
    )
    for name in found:
        # The unknown token may span as many characters as a name.
        if name != unknown and _reads_as_token(plain, name, names[name]):
            raise ValueError(name)
    return plain


def surrounding_tokens(backend: Any) -> tuple[list[int], list[int]]:
    """Return the ids that a `tokenizers.Tokenizer` puts before and after a text with `add_special_tokens`."""
    encoding = backend.encode("a", add_special_tokens=True)
    every = list(zip(encoding.ids, encoding.special_tokens_mask, strict=True))

    def special(some: list[tuple[int, int]]) -> list[int]:
        return [number for number, _ in takewhile(lambda each: each[1], some)]

    return special(every), special(every[::-1])[::-1]


def begin_with_bos(fast: Any, bos_id: int, eos_id: int) -> Any:
    """Return a copy of a Hugging Face tokenizer that encodes a prompt as the model saw documents in training.

    The copy puts BOS first if BOS differs from EOS, and nothing at the end, because a prompt is to be continued. Its
    `bos_token` is the token that documents begin with.
    """
    from tokenizers.processors import TemplateProcessing

    fast = copy.deepcopy(fast)
    backend, token = fast.backend_tokenizer, fast.convert_ids_to_tokens(bos_id)
    plain = type(backend).from_str(backend.to_str())
    plain.no_truncation()
    plain.no_padding()
    before, after = surrounding_tokens(plain)
    if after or before not in ([bos_id], [] if bos_id == eos_id else [bos_id]):
        first = [] if bos_id == eos_id else [f"{token}:0"]
        backend.post_processor = TemplateProcessing(
            single=[*first, "$A:0"], pair=[*first, "$A:0", "$B:1"], special_tokens=[(token, bos_id)]
        )
    fast.bos_token = token
    return fast


def _without_prepend(normalizer: dict[str, Any] | None) -> dict[str, Any] | None:
    if normalizer is None or normalizer["type"] == "Prepend":
        return None
    if normalizer["type"] == "Sequence":
        kept = [each for each in map(_without_prepend, normalizer["normalizers"]) if each is not None]
        return {**normalizer, "normalizers": kept}
    return normalizer


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    if pre_tokenizer["type"] == "Sequence":
        return [step for each in pre_tokenizer["pretokenizers"] for step in _steps(each)]
    return [pre_tokenizer]


def _reads_as_token(backend: Any, name: str, number: int | None) -> bool:
    """Whether the backend encodes the name of a token inside a text as that token."""
    encoding = backend.encode(f"{name} a{name}a", add_special_tokens=False)
    places = zip(encoding.ids, encoding.offsets, strict=True)
    return any(each == number and end - start >= len(name) for each, (start, end) in places)


def _ids(backend: Any, text: str) -> list[int]:
    ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    return ids


def byte_level_tokens(backend: Any) -> dict[int, bytes] | None:
    """Return the bytes of every token of a byte-level BPE (GPT-2, Llama 3), without special tokens; None for others.

    Args:
        backend: a `tokenizers.Tokenizer`.
    """
    state = json.loads(backend.to_str())
    steps = [step["type"] for step in _steps(state["pre_tokenizer"])]
    if state["model"]["type"] != "BPE" or "ByteLevel" not in steps or state["normalizer"] is not None:
        return None
    # Printable characters of Latin-1 stand for their own byte, and those from U+0100 on for the others in order.
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [each for each in range(0x100) if each not in own]
    byte_of = {chr(each): each for each in own} | {chr(0x100 + place): each for place, each in enumerate(others)}
    added = backend.get_added_tokens_decoder()
    tokens = {number: name for name, number in backend.get_vocab(with_added_tokens=False).items()}
    if any(character not in byte_of for number, name in tokens.items() if number not in added for character in name):
        return None
    return {
        number: bytes(byte_of[character] for character in name)
        for number, name in tokens.items()
        if number not in added
    }
