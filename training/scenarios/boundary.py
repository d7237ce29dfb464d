"""Continue a prompt that ends inside a token as if its text had been read byte by byte.

The tokens of " wor" are not the beginning of those of " world": a model has hardly seen what follows them. So the text
of the prompt after its last safe boundary is dropped, and the token sequences that cover it are weighed by the model:
those of which only the last token passes its end. Drawing one of them and going on gives the law of texts that begin
with the prompt.

Only sequences that the tokenizer itself makes of their text count. Source: Hayase et al. (arXiv 2506.14123).
"""

import bisect
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from training.data.tokenizer_backends import byte_level_tokens
from training.data.tokenizers import Tokenizer
from training.model.sampling import evaluation_mode, guided, rule_out

# Dropped texts whose covers are remembered: most prompts end in one of few words or marks.
_COVERS = 4096
_TRIES = 8  # places for a safe boundary
_MOST_DROPPED = 4096  # characters; a longer text without a boundary keeps its own tokens, as covering it takes too long
_ROWS = 16  # sequences that the model reads at once
# Bytes by which a character is completed, to see how the tokenizer continues: all first ones, some of the others.
_FIRST_BYTES = range(0x80, 0xC0)
_OTHER_BYTES = (0x80, 0x9F, 0xBF)


@dataclass(frozen=True)
class Cover:
    """The token sequences that cover the dropped end of a prompt.

    Attributes:
        beginnings: all tokens but the last of each sequence, without repetition.
        last: for each beginning, the last tokens that it can have.
    """

    beginnings: tuple[tuple[int, ...], ...]
    last: tuple[tuple[int, ...], ...]

    @property
    def sequences(self) -> list[tuple[int, ...]]:
        """All sequences, in the order of `Boundary.log_weights`."""
        return [(*head, token) for head, tokens in zip(self.beginnings, self.last, strict=True) for token in tokens]


@dataclass(frozen=True)
class SplitPrompt:
    """A prompt up to a safe boundary.

    Attributes:
        ids: tokens of the text before the boundary.
        dropped: the text after it; empty if the prompt ends at a boundary.
        most_tokens: of the whole text, however its end is covered.
    """

    ids: list[int]
    dropped: str
    most_tokens: int


class Boundary:
    """Safe boundaries and covers of a byte-level BPE tokenizer; with others, prompts are only tokenised.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        tokens = None if tokenizer.adds_prefix_space else byte_level_tokens(tokenizer.fast.backend_tokenizer)
        self.is_exact = tokens is not None
        self._tokens = sorted((content, number) for number, content in (tokens or {}).items() if content)
        self._bytes = tokens or {}
        self._longest = max((len(content) for content, _ in self._tokens), default=0)
        self.cover: Callable[[str], Cover] = lru_cache(_COVERS)(self._cover)

    def split(self, sentences: Sequence[str], *, complete: bool) -> SplitPrompt:
        """Tokenise the sentences of a prompt as training text is, each alone, up to a safe boundary in the last.

        Args:
            sentences: of the prompt, in order.
            complete: whether the last sentence ends where the prompt does, so that nothing can change its tokens.
        """
        first = np.arange(len(sentences)) == 0
        ids, lengths = self._tokenizer.encode(sentences, first)
        every = [int(each) for each in ids]
        if complete or not sentences or not self.is_exact:
            return SplitPrompt(every, "", len(every))
        last = sentences[-1]
        own = every[len(every) - int(lengths[-1]) :]
        if self._tokenizer.decode(own) != last:
            return SplitPrompt(every, "", len(every))
        place = self._safe_place(last, own)
        kept = [] if place == 0 else self._encode(last[:place])
        before = every[: len(every) - len(own)]
        dropped = last[place:]
        if len(dropped) > _MOST_DROPPED:
            return SplitPrompt(every, "", len(every))
        # Nothing can follow that changes the tokens if the only cover is the text's own.
        sequences = self.cover(dropped).sequences
        if sequences == [tuple(self._encode(dropped))]:
            return SplitPrompt(every, "", len(every))
        return SplitPrompt([*before, *kept], dropped, len(before) + len(kept) + max(map(len, sequences)))

    def log_weights(
        self,
        model: Any,
        cover: Cover,
        contexts: Sequence[Sequence[int]],
        *,
        scale: float = 1.0,
        banned_ids: Sequence[int] = (),
        vocab_size: int | None = None,
    ) -> torch.Tensor:
        """Return the log-probability of each sequence of a cover, float64 [sequences], not normalised.

        Args:
            model: a Hugging Face causal language model.
            cover: of the dropped text.
            contexts: the token ids before the boundary; with guidance also those to guide away from.
            scale: of the guidance.
            banned_ids: tokens that are never sampled; they do not count in the probabilities either.
            vocab_size: ids from here on are padding and never sampled; None for no padding.
        """
        device = next(model.parameters()).device
        banned = torch.tensor(list(banned_ids), dtype=torch.long, device=device)
        weights = []
        can_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        with evaluation_mode(model):
            for at in range(0, len(cover.beginnings), _ROWS):
                heads = cover.beginnings[at : at + _ROWS]
                length = max(map(len, heads))
                # Padding is at the end, where a causal model does not see it.
                padded = [[*head, *[0] * (length - len(head))] for head in heads]
                rows = torch.tensor([[*context, *each] for context in contexts for each in padded], device=device)
                # The places of the tokens to predict: each of a beginning, and the last.
                keep = {"logits_to_keep": length + 1} if can_keep else {}
                logits = model(input_ids=rows, use_cache=False, **keep).logits[:, -length - 1 :].float()
                if len(contexts) > 1:
                    towards, away = logits.chunk(2)
                    logits = guided(towards, away, scale)
                rule_out(logits, banned, vocab_size)
                log_p = torch.log_softmax(logits.double(), dim=-1).cpu()
                for row, head in enumerate(heads):
                    before = sum((log_p[row, place, token] for place, token in enumerate(head)), torch.zeros(()))
                    weights.append(before + log_p[row, len(head), list(cover.last[at + row])])
        return torch.cat(weights)

    def size(self, ids: Sequence[int]) -> int:
        """The number of bytes of some tokens."""
        return sum(len(self._bytes.get(each, b"")) for each in ids)

    def _safe_place(self, sentence: str, ids: list[int]) -> int:
        # A tokenizer of words with the space before them never joins something and the space that follows it. That is
        # tried here too, as others may split differently.
        place = len(sentence)
        for _ in range(_TRIES):
            place = _last_space(sentence, place)
            if place == 0:
                break
            if [*self._encode(sentence[:place]), *self._encode(sentence[place:])] == ids:
                return place
        return 0

    def _cover(self, dropped: str) -> Cover:
        content = dropped.encode()
        beginnings: list[tuple[int, ...]] = []
        last: list[tuple[int, ...]] = []
        for place in range(max(0, len(content) - self._longest), len(content)):
            head = self._head(content, place)
            if head is None:
                continue
            candidates = self._beginning_with(content[place:])
            allowed = self._canonical(head, candidates)
            if allowed:
                beginnings.append(head)
                last.append(allowed)
        if not beginnings:
            # The tokenizer makes other tokens of this text whatever follows: take its own.
            own = tuple(self._encode(dropped))
            return Cover((own[:-1],), ((own[-1],),))
        return Cover(tuple(beginnings), tuple(last))

    def _head(self, content: bytes, place: int) -> tuple[int, ...] | None:
        """The tokens of the first `place` bytes; None if the tokenizer never ends a token there."""
        if place == 0:
            return ()
        end = place
        while end < len(content) and content[end] & 0xC0 == 0x80:
            end += 1  # to the end of the character
        head, size = [], 0
        for token in self._encode(content[:end].decode()):
            if size >= place:
                break
            head.append(token)
            size += len(self._bytes.get(token, b""))
        return tuple(head) if size == place else None

    def _beginning_with(self, prefix: bytes) -> list[int]:
        place, found = bisect.bisect_left(self._tokens, (prefix, -1)), []
        while place < len(self._tokens) and self._tokens[place][0].startswith(prefix):
            found.append(self._tokens[place][1])
            place += 1
        return sorted(found)

    def _canonical(self, head: tuple[int, ...], candidates: list[int]) -> tuple[int, ...]:
        """The candidates with which the tokenizer itself continues `head`."""
        start = b"".join(self._bytes[token] for token in head)
        texts: list[str] = []
        owners: list[int] = []
        for token in candidates:
            options = _completions(start + self._bytes[token])
            texts += options
            owners += [token] * len(options)
        ids, lengths = self._tokenizer.encode(texts)
        found = set()
        for token, encoded in zip(owners, np.split(ids, np.cumsum(lengths)[:-1]), strict=True) if texts else ():
            if tuple(int(each) for each in encoded[: len(head) + 1]) == (*head, token):
                found.add(token)
        return tuple(token for token in candidates if token in found)

    def _encode(self, text: str) -> list[int]:
        ids, _ = self._tokenizer.encode([text])
        return [int(each) for each in ids]


def _last_space(text: str, end: int) -> int:
    """The last place before `end` where a space follows something else; 0 for none."""
    place = end
    while (place := text.rfind(" ", 0, place)) > 0:
        if not text[place - 1].isspace():
            return place
    return 0


def _completions(content: bytes) -> list[str]:
    """The text of the bytes; if they end inside a character, texts that complete it."""
    try:
        return [content.decode()]
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return []
        missing = _length_of_character(content[error.start]) - (len(content) - error.start)
    texts = []
    for first in _FIRST_BYTES:
        for other in _OTHER_BYTES if missing > 1 else _OTHER_BYTES[:1]:
            try:
                texts.append((content + bytes([first, *[other] * (missing - 1)])).decode())
            except UnicodeDecodeError:
                continue
    return texts


def _length_of_character(first: int) -> int:
    return 2 if first < 0xE0 else 3 if first < 0xF0 else 4
