"""Covers of prompts that end inside a token, against enumeration of all token sequences."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from training.data.tokenizer_backends import byte_level_tokens
from training.data.tokenizers import END_OF_TEXT, Tokenizer, wrap_tokenizer
from training.scenarios.boundary import Boundary

TEXTS = [
    "the world is wide and the word was worn",
    "“café” won’t close — naïve wörds wörk",
    "worlds  apart,   they said.",
]

# Bytes that may complete a character.
TAILS = [bytes(each) for size in range(3) for each in itertools.product(range(0x80, 0xC0), repeat=size)]


def train(pre_tokenizer: Any = None, vocab_size: int = 330) -> Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    backend.train_from_iterator(TEXTS * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT)
    return wrap_tokenizer("test", fast)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train()


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=tokenizer.base_size + 6, n_embd=16, n_layer=1, n_head=2, n_positions=64,
                bos_token_id=0, eos_token_id=0, initializer_range=0.5,
            )
        ).eval()  # fmt: skip


def every_cover(tokenizer: Tokenizer, text: str) -> set[tuple[int, ...]]:
    """All sequences that reach the end of a text with their last token, and that the tokenizer makes of their bytes."""
    tokens = byte_level_tokens(tokenizer.fast.backend_tokenizer)
    assert tokens is not None
    goal = text.encode()

    def extend(head: tuple[int, ...], size: int) -> Iterator[tuple[int, ...]]:
        for token, content in tokens.items():
            rest = goal[size:]
            if content.startswith(rest):
                yield (*head, token)
            elif rest.startswith(content):
                yield from extend((*head, token), size + len(content))

    found = set()
    for each in extend((), 0):
        content = b"".join(tokens[token] for token in each)
        # A sequence that ends inside a character is made where some text that begins with its bytes is.
        for tail in TAILS:
            try:
                whole = (content + tail).decode()
            except UnicodeDecodeError:
                continue
            ids, _ = tokenizer.encode([whole])
            if tuple(ids[: len(each)].tolist()) == each:
                found.add(each)
                break
            if not tail:
                break
    return found


@pytest.mark.parametrize("dropped", [" wor", " wo", " ", " w", "wö", "wör", " caf", "’", "  ", " won", ","])
def test_the_cover_is_what_enumeration_finds(tokenizer: Tokenizer, dropped: str) -> None:
    cover = Boundary(tokenizer).cover(dropped)
    assert len(set(cover.sequences)) == len(cover.sequences)
    assert set(cover.sequences) == every_cover(tokenizer, dropped)


def log_p(model: Any, context: list[int], ids: tuple[int, ...], banned: list[int], size: int) -> float:
    total, whole = 0.0, list(context)
    with torch.no_grad():
        for token in ids:
            logits = model(torch.tensor([whole])).logits[0, -1].double()
            logits[banned] = -torch.inf
            logits[size:] = -torch.inf
            total += torch.log_softmax(logits, -1)[token].item()
            whole.append(token)
    return total


def test_the_weights_are_the_probabilities_of_the_sequences(tokenizer: Tokenizer, model: Any) -> None:
    boundary = Boundary(tokenizer)
    cover, banned, size = boundary.cover(" wo"), [0, 40], tokenizer.base_size
    assert len({len(each) for each in cover.sequences}) > 1, "sequences of several lengths"
    found = boundary.log_weights(model, cover, [[0, 50, 60]], banned_ids=banned, vocab_size=size)
    expected = [log_p(model, [0, 50, 60], each, banned, size) for each in cover.sequences]
    assert np.allclose(found.numpy(), expected, atol=1e-5)


def test_guided_weights_follow_the_formula(tokenizer: Tokenizer, model: Any) -> None:
    boundary, scale = Boundary(tokenizer), 2.5
    cover = boundary.cover(" wo")
    found = boundary.log_weights(model, cover, [[0, 50], [0, 51]], scale=scale, vocab_size=tokenizer.base_size)
    for weight, ids in zip(found.tolist(), cover.sequences, strict=True):
        total = 0.0
        for place, token in enumerate(ids):
            with torch.no_grad():
                good, bad = (model(torch.tensor([[0, tag, *ids[:place]]])).logits[0, -1].double() for tag in (50, 51))
            logits = (bad + scale * (good - bad))[: tokenizer.base_size]
            total += torch.log_softmax(logits, -1)[token].item()
        assert weight == pytest.approx(total, abs=1e-4)


def test_a_prompt_is_cut_at_the_last_space_of_its_last_sentence(tokenizer: Tokenizer) -> None:
    boundary = Boundary(tokenizer)
    sentences = ["they said. ", "the world is wor"]
    split = boundary.split(sentences, complete=False)
    assert split.dropped == " wor"
    assert tokenizer.decode(split.ids) + split.dropped == "".join(sentences)
    # Each sentence is tokenised alone, as in training.
    first, _ = tokenizer.encode([sentences[0]])
    assert split.ids[: len(first)] == first.tolist()
    whole = boundary.split(sentences, complete=True)
    assert whole.dropped == ""
    assert tokenizer.decode(whole.ids) == "".join(sentences)


def test_a_space_at_the_end_is_no_token_of_its_own(tokenizer: Tokenizer) -> None:
    """The case of a trailing space: nearly every word begins with the space, so its lone token is rare."""
    split = Boundary(tokenizer).split(["the "], complete=False)
    assert split.dropped == " "
    assert tokenizer.decode(split.ids) == "the"


def test_other_tokenizers_are_not_healed() -> None:
    from tokenizers import pre_tokenizers

    plain = train(pre_tokenizers.ByteLevel(add_prefix_space=True))
    boundary = Boundary(plain)
    assert not boundary.is_exact
    assert boundary.split(["the wor"], complete=False).dropped == ""
