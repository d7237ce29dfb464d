"""The loss of a model on held-out documents, in bits per byte of their text."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.tagged_stream import DocumentTokens
from training.model.sampling import evaluation_mode

TOKENS_AT_ONCE = 4096  # per forward pass; with a vocabulary of 50,000 the logits take 0.8 GB


@dataclass(frozen=True)
class HeldOutLoss:
    """The loss of each document: float64 [n] nats, and int64 [n] numbers of predicted tokens and bytes."""

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @property
    def bits(self) -> NDArray[np.float64]:
        """The loss in bits, float64 [n]."""
        return self.nats / math.log(2)


def held_out_loss(model: Any, documents: Sequence[DocumentTokens], *, context_length: int) -> HeldOutLoss:
    """The negative log-likelihood of the documents' text, every token of it predicted exactly once.

    EOS and control tokens are only context and are not counted. Documents longer than the context are read in windows
    that advance by half of it, so that each counted token after the first window sees at least half a context.

    Args:
        model: a Hugging Face causal language model; dropout is switched off during the call.
        documents: the documents to predict; their first token is EOS or BOS.
        context_length: tokens per window, at least 2.
    """
    every = [
        window
        for index, document in enumerate(documents)
        for window in windows(index, len(document.input_ids), context_length)
    ]
    nats = np.zeros(len(documents))
    device = next(model.parameters()).device
    with evaluation_mode(model):
        for batch in batches_of(every):
            rows = [documents[window.document].input_ids[window.start : window.stop] for window in batch]
            for window, losses in zip(batch, _losses(model, rows, device), strict=True):
                # losses[i] is that of token start + 1 + i; tokens before `first` were predicted in the window before.
                counted = documents[window.document].is_text[window.first : window.stop]
                nats[window.document] += losses[window.first - window.start - 1 :][counted].sum()
    return HeldOutLoss(nats, *_sizes(documents))


def unigram_loss(counts: NDArray[np.int64], documents: Sequence[DocumentTokens]) -> HeldOutLoss:
    """The loss of the same tokens under their frequencies in the training text: a baseline that a model has to beat.

    Args:
        counts: int64 [vocabulary], occurrences in the training text; 1 is added to each, so that none is 0.
        documents: the documents to predict.
    """
    nats_of = math.log(int(counts.sum()) + len(counts)) - np.log(counts + 1.0)
    nats = [nats_of[document.input_ids[document.is_text]].sum() for document in documents]
    return HeldOutLoss(np.array(nats, dtype=np.float64), *_sizes(documents))


def all_aligned(document: DocumentTokens, control_ids: Sequence[int]) -> DocumentTokens:
    """The document with the first control token in place of each of them, which is the context of samples."""
    ids = document.input_ids.copy()
    ids[~document.is_text & np.isin(ids, control_ids)] = control_ids[0]
    return replace(document, input_ids=ids)


@dataclass(frozen=True)
class Window:
    """Tokens [start, stop) of a document are read, and those of [first, stop) predicted; start < first."""

    document: int
    start: int
    first: int
    stop: int


def _sizes(documents: Sequence[DocumentTokens]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    tokens = [int(document.is_text.sum()) for document in documents]
    return np.array(tokens, dtype=np.int64), np.array([document.text_bytes for document in documents], dtype=np.int64)


def windows(document: int, length: int, context_length: int) -> Iterator[Window]:
    """The windows of a document of `length` tokens; each token but the first is predicted in exactly one."""
    start, first = 0, 1
    while first < length:
        stop = min(start + context_length, length)
        yield Window(document, start, first, stop)
        start, first = start + max(1, context_length // 2), stop


def batches_of(every: Sequence[Window], tokens_at_once: int | None = None) -> Iterator[list[Window]]:
    """Batches of windows of similar length, because they are padded to the longest, of so many tokens with padding."""
    most = tokens_at_once or TOKENS_AT_ONCE
    batch: list[Window] = []
    for window in sorted(every, key=lambda each: each.stop - each.start):
        if batch and (len(batch) + 1) * (window.stop - window.start) > most:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _losses(model: Any, rows: list[NDArray[np.int64]], device: torch.device) -> list[NDArray[np.float64]]:
    """-log p of tokens 1.. of each row in nats, float64 [length - 1]."""
    padded = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.long)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.from_numpy(row)
    padded = padded.to(device)
    # Padding is at the end, where a causal model cannot see it from any counted position.
    logits = model(input_ids=padded, use_cache=False).logits[:, :-1].float()
    targets = padded[:, 1:]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    losses = losses.view_as(targets)
    return [loss[: len(row) - 1] for loss, row in zip(losses.double().cpu().numpy(), rows, strict=True)]
