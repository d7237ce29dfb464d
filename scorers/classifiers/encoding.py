"""Encode sentences into sequences of token ids, in batches; cut or window those too long for the model."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scorers.errors import UserError

Long = Literal["windows", "truncate"]
Ids = NDArray[np.int32]

# Tokens that neighbouring windows share, so that a phrase at the edge of one is whole in the other.
OVERLAP = 64

# Encode a longer text in pieces: what the tokenizers keep per token takes some hundred times its bytes.
PIECE = 1 << 16
_BATCH_CHARACTERS = 1 << 18
_PARALLELISM = "TOKENIZERS_PARALLELISM"
_SPACE = re.compile(r"\s")


@dataclass(frozen=True)
class Placed:
    """A text's tokens, and the windows in which a network reads them.

    Attributes:
        offsets: int32 [tokens, 2], start and exclusive end of each token in code points.
        starts: index of the first token of each window.
        windows: token ids of each window, special ones around.
        before: number of special tokens before the first.
        room: most tokens in a window.
    """

    offsets: NDArray[np.int32]
    starts: list[int]
    windows: list[Ids]
    before: int
    room: int

    def join(self, outputs: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the outputs of the tokens, [tokens, …], from those of the windows, [positions, …].

        A token takes the window in which it is farthest from a place where the window cuts the text.
        """
        tokens = len(self.offsets)
        joined = np.zeros((tokens, *outputs[0].shape[1:]), dtype=np.float32)
        farthest = np.full(tokens, -1, dtype=np.int64)
        for start, output in zip(self.starts, outputs, strict=True):
            own = np.arange(start, min(start + self.room, tokens))
            left = own - start if start else np.full(len(own), tokens)
            right = own[-1:] - own if own.size and own[-1] < tokens - 1 else np.full(len(own), tokens)
            distance = np.minimum(left, right)
            better = own[distance > farthest[own]]
            farthest[better] = distance[better - start]
            joined[better] = output[self.before + better - start]
        return joined


class Encoder:
    """Encodes sentences with a fast tokenizer.

    Args:
        tokenizer: of transformers, backed by the `tokenizers` library.
        longest: tokens that the model takes, special ones included.
        long: how to encode a longer sentence. `truncate` takes its beginning, as Detoxify does. `windows` takes all of
            it, in windows of the model's length with special tokens around each; a window overlaps the one before by
            64 tokens, and the last one ends where the sentence does.
        threads: more than one lets the library encode in parallel; it chooses how many it uses.

    Raises:
        UserError: the tokenizer is not a fast one, or its special tokens leave no room for text.
    """

    def __init__(self, tokenizer: Any, longest: int, long: Long, threads: int) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(f"{type(tokenizer).__name__} is not a fast tokenizer; use a model that has one.")
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._before, self._after = _frame(backend)
        self._room = longest - len(self._before) - len(self._after)
        if self._room <= OVERLAP:
            raise UserError(f"The model takes {longest} tokens at once, which leaves no room for text.")
        self._long = long
        self._parallel = threads > 1

    def __call__(self, sentences: Sequence[str]) -> list[list[Ids] | Exception]:
        """Return per sentence its sequences, several only if it is too long for the model, or the error it raised."""
        results: list[list[Ids] | Exception] = []
        with _parallelism(self._parallel):
            for batch in _batches(sentences):
                results += self._encode(batch)
        return results

    def placed(self, sentences: Sequence[str]) -> list[Placed | Exception]:
        """Return the tokens of each sentence with their places, or the error it raised."""
        results: list[Placed | Exception] = []
        with _parallelism(self._parallel):
            for batch in _batches(sentences):
                results += self._placed_batch(batch) if len(batch) > 1 else map(self._attempt_placed, batch)
        return results

    def _placed_batch(self, batch: list[str]) -> list[Placed | Exception]:
        try:
            return [self._placed([(0, each)]) for each in self._backend.encode_batch(batch, add_special_tokens=False)]
        except Exception:  # noqa: BLE001 - encode each on its own to find the sentence that fails
            return [self._attempt_placed(sentence) for sentence in batch]

    def _attempt_placed(self, sentence: str) -> Placed | Exception:
        encodings, start = [], 0
        try:
            for piece in pieces(sentence):
                encodings.append((start, self._backend.encode(piece, add_special_tokens=False)))
                start += len(piece)
            return self._placed(encodings)
        except Exception as error:  # noqa: BLE001 - for a lone surrogate, or anything else it cannot encode
            return error

    def _placed(self, encodings: Sequence[tuple[int, Any]]) -> Placed:
        ids = np.concatenate([np.asarray(each.ids, dtype=np.int32) for _, each in encodings])
        offsets = np.concatenate(
            [np.asarray(each.offsets, dtype=np.int32).reshape(-1, 2) + start for start, each in encodings]
        )
        if not len(ids) + len(self._before) + len(self._after):
            raise ValueError("no token for a network to start from")
        starts = window_starts(len(ids), self._room)
        windows = [np.concatenate((self._before, ids[start : start + self._room], self._after)) for start in starts]
        return Placed(offsets, starts, windows, len(self._before), self._room)

    def _encode(self, batch: list[str]) -> list[list[Ids] | Exception]:
        if len(batch) == 1 and len(batch[0]) > PIECE:
            return [self._attempt(batch[0])]
        try:
            return [self._sequences(ids) for ids in self._ids(batch)]
        except Exception:  # noqa: BLE001 - encode each on its own to find the sentence that fails
            return [self._attempt(sentence) for sentence in batch]

    def _attempt(self, sentence: str) -> list[Ids] | Exception:
        try:
            return self._sequences(self._long_ids(sentence))
        except Exception as error:  # noqa: BLE001 - for a lone surrogate, or anything else it cannot encode
            return error

    def _ids(self, texts: list[str]) -> Iterator[Ids]:
        # The fast variant does not compute the offsets of the tokens.
        for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False):
            yield np.asarray(encoding.ids, dtype=np.int32)

    def _long_ids(self, text: str) -> Ids:
        found: list[Ids] = []
        for piece in pieces(text):
            found += self._ids([piece])
            if self._long == "truncate" and sum(map(len, found)) >= self._room:
                break
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int32)

    def _sequences(self, ids: Ids) -> list[Ids]:
        if not len(ids) + len(self._before) + len(self._after):
            raise ValueError("no token for a network to start from")
        starts = window_starts(len(ids), self._room) if self._long == "windows" else [0]
        return [np.concatenate((self._before, ids[start : start + self._room], self._after)) for start in starts]


def window_starts(tokens: int, room: int) -> list[int]:
    """Return the starts of windows of `room` tokens that cover `tokens`; neighbours share at least `OVERLAP`."""
    if tokens <= room:
        return [0]
    return [*range(0, tokens - room, room - OVERLAP), tokens - room]


def pieces(text: str) -> Iterator[str]:
    """Yield pieces of at most `PIECE` characters, cut before white space if there is any in the second half.

    Tokenizers read no further than the next white space, so the tokens are those of the whole text, except in a run of
    some ten thousand characters without any, which no language has.
    """
    start = 0
    while len(text) - start > PIECE:
        end = start + PIECE
        last = None
        for last in _SPACE.finditer(text, start + PIECE // 2, end):  # noqa: B007 - only the last match is used
            pass
        end = last.start() if last else end
        yield text[start:end]
        start = end
    yield text[start:]


def _batches(sentences: Sequence[str]) -> Iterator[list[str]]:
    """Yield batches of sentences of limited total size; one longer than `PIECE` is a batch of its own."""
    rest = iter(sentences)
    batch: list[str] = []
    size = 0
    for sentence in rest:
        if batch and (len(sentence) > PIECE or size + len(sentence) > _BATCH_CHARACTERS):
            yield batch
            batch, size = [], 0
        batch.append(sentence)
        size += len(sentence)
        if len(sentence) > PIECE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _frame(backend: Any) -> tuple[Ids, Ids]:
    """Return the special tokens before and after a text."""
    encoding = backend.encode("a")
    special = encoding.special_tokens_mask
    before = next((i for i, each in enumerate(special) if not each), len(special))
    after = next((i for i, each in enumerate(reversed(special)) if not each), 0)
    ids = np.asarray(encoding.ids, dtype=np.int32)
    return ids[:before], ids[len(ids) - after :]


@contextmanager
def _parallelism(parallel: bool) -> Iterator[None]:
    """Let the tokenizers use all cores, or only this thread; they read the environment at each call.

    By default the library takes every core, although a worker runs on each of them, and after a fork none, with a
    warning.
    """
    before = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = "true" if parallel else "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PARALLELISM]
        else:
            os.environ[_PARALLELISM] = before
