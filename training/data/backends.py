"""What a tokenizer of the `tokenizers` library does at the ends of a text: a space before it, tokens around it.

And what it takes for a token in the middle of one.
"""

import copy
import json
import re
from itertools import takewhile
from typing import Any


def without_prefix(backend: Any) -> Any | None:
    """A copy that puts no space before what it encodes, for text that goes on.

    Llama, Mistral and T5 (SentencePiece) put one, and so does GPT-2 with `add_prefix_space`: it belongs to a text's
    beginning, not into the middle of it.

    Args:
        backend: a `tokenizers.Tokenizer`.

    Returns:
        None where it puts none, or where the space stands for one that was taken off the end of what came before.
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
    # Some read words and not the spaces between: as T5's, which splits by them, and puts one before each word.
    if _ids(backend, "a ") == _ids(backend, "a"):
        return None
    plain: Any = type(backend).from_str(json.dumps(state))
    plain.encode_special_tokens = backend.encode_special_tokens
    return plain


def reading_names_as_text(backend: Any) -> Any | None:
    """A copy that reads the names of special tokens and of bytes, such as `</s>` and `<0x0A>`, as any other text.

    A unigram model of the `tokenizers` library finds them in a text as it finds all entries of its vocabulary, which
    SentencePiece does not. Here such a name is read in two pieces.

    Args:
        backend: a `tokenizers.Tokenizer` that encodes special tokens.

    Returns:
        None where it reads them as text already.

    Raises:
        ValueError: it takes a name for the token all the same; says which.
    """
    names = {token.content: number for number, token in backend.get_added_tokens_decoder().items() if token.special}
    names |= {name: backend.token_to_id(name) for name in (f"<0x{number:02X}>" for number in range(256))}
    found = [name for name, number in names.items() if _takes(backend, name, number)]
    if not found:
        return None
    state = json.loads(backend.to_str())
    # By their first characters, of which there are few, so that other text costs little.
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
        # What is not known may be as long as a name.
        if name != unknown and _takes(plain, name, names[name]):
            raise ValueError(name)
    return plain


def puts_around(backend: Any) -> tuple[list[int], list[int]]:
    """The ids that a `tokenizers.Tokenizer` puts before and after a text when asked for special tokens."""
    encoding = backend.encode("a", add_special_tokens=True)
    every = list(zip(encoding.ids, encoding.special_tokens_mask, strict=True))

    def special(some: list[tuple[int, int]]) -> list[int]:
        return [number for number, _ in takewhile(lambda each: each[1], some)]

    return special(every), special(every[::-1])[::-1]


def beginning_with(fast: Any, bos_id: int, eos_id: int) -> Any:
    """A copy of a Hugging Face tokenizer that agrees with what a model of it has read.

    It puts the beginning-of-text token first if that is another than the end-of-text token, nothing at the end, as a
    prompt is to be continued, and names the token that documents begin with as its `bos_token`.

    Args:
        fast: the tokenizer.
        bos_id: the token that documents begin with.
        eos_id: the token that they end with.
    """
    from tokenizers.processors import TemplateProcessing

    fast = copy.deepcopy(fast)
    backend, token = fast.backend_tokenizer, fast.convert_ids_to_tokens(bos_id)
    plain = type(backend).from_str(backend.to_str())
    plain.no_truncation()
    plain.no_padding()
    before, after = puts_around(plain)
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


def _takes(backend: Any, name: str, number: int | None) -> bool:
    """Whether it reads the name of a token in a text as that token."""
    encoding = backend.encode(f"{name} a{name}a", add_special_tokens=False)
    places = zip(encoding.ids, encoding.offsets, strict=True)
    return any(each == number and end - start >= len(name) for each, (start, end) in places)


def _ids(backend: Any, text: str) -> list[int]:
    ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    return ids
