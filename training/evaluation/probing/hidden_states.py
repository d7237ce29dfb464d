"""The hidden states of sentences, read in the context of their documents."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorers.errors import UserError
from training.data.prepare import PreparedData
from training.evaluation.held_out_loss import Window, batches_of, windows
from training.evaluation.probing.sentences import ChosenSentences
from training.model.sampling import evaluation_mode, refuse_nan

_TOKENS_AT_ONCE = 2048  # of all layers; with 48 layers of width 1,600 they take 0.6 GB


@dataclass(frozen=True)
class ReadDocument:
    """A document as a model without tags reads it, up to the last sentence that is wanted of it.

    Attributes:
        ids: int64 [t], the token that begins a document, then its text.
        starts, ends: int64 [m], positions in `ids` of each sentence.
        rows: int64 [m], the number of each sentence among all that are wanted.
    """

    ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    rows: NDArray[np.int64]


def documents_of(data: PreparedData, chosen: ChosenSentences) -> list[ReadDocument]:
    """The documents of the chosen sentences, without control tokens, which would give the label away."""
    store, begins = data.store, data.stream.options.begins_with
    found = []
    every, firsts = np.unique(chosen.documents, return_index=True)
    for document, rows in zip(every, np.split(np.arange(len(chosen.rows)), firsts[1:]), strict=True):
        first = store.sentence_offsets[store.document_offsets[document]]
        starts, ends = (store.sentence_offsets[chosen.rows[rows] + after] for after in (0, 1))
        text = np.asarray(store.tokens[first : ends[-1]], dtype=np.int64)
        ids = np.concatenate([np.array([begins], dtype=np.int64), text])
        found.append(ReadDocument(ids, 1 + starts - first, 1 + ends - first, rows))
    return found


def mean_states(
    model: Any,
    documents: Sequence[ReadDocument],
    *,
    context_length: int,
    tokens_at_once: int = _TOKENS_AT_ONCE,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[int], NDArray[np.float32]]:
    """The mean hidden state over the tokens of each sentence: of the embeddings, and after each quarter of the layers.

    The mean and not the last token, which is mostly a full stop or a line break. That of the embeddings is little more
    than a bag of words, which the layers can be compared with. A document longer than the context is read in windows
    that advance by half of it, only where there are sentences.

    Args:
        model: a Hugging Face causal language model; dropout is disabled during the call.
        documents: what to read.
        context_length: tokens per window, at least 2.
        tokens_at_once: tokens of a forward pass, with padding.
        progress: called with the windows read and the total.

    Returns:
        The layers, 0 for the embeddings, and float32 [layers, n, width].

    Raises:
        UserError: the model gives no hidden states, its outputs are not numbers, or it lacks tokens of the text.
    """
    rows = model.get_input_embeddings().num_embeddings
    if max(int(each.ids.max()) for each in documents) >= rows:
        raise UserError(
            f"The model has {rows:,} tokens, and its tokenizer more: they do not belong together. Restore the folder "
            "of the run, or export its model again."
        )
    every = [
        window
        for number, document in enumerate(documents)
        for window in windows(number, len(document.ids), context_length)
        if any(_parts(document, window))
    ]
    number = sum(len(each.rows) for each in documents)
    layers: list[int] = []
    found, done = np.zeros((0, number, 0), dtype=np.float32), 0
    with evaluation_mode(model):
        for batch in batches_of(every, tokens_at_once):
            states = _states(model, [documents[each.document].ids[each.start : each.stop] for each in batch])
            if not layers:
                layers = quarters(len(states) - 1)
                found = np.zeros((len(layers), number, states[-1].shape[-1]), dtype=np.float32)
            weights, sentences = _weights(documents, batch, states[0].shape[1])
            weights = weights.to(states[0].device)
            for place, layer in enumerate(layers):
                means = weights @ states[layer].flatten(0, 1).float()
                refuse_nan(means)
                # A sentence may be in several windows, also of one batch.
                np.add.at(found[place], sentences, means.cpu().numpy())
            done += len(batch)
            if progress is not None:
                progress(done, len(every))
    return layers, found


def quarters(layers: int) -> list[int]:
    """The embeddings (0), the ends of the quarters of so many layers, and the last."""
    return sorted({0, *(max(1, round(layers * quarter / 4)) for quarter in (1, 2, 3)), layers})


def _parts(document: ReadDocument, window: Window) -> Iterator[tuple[int, int, int]]:
    """Each sentence, by its place in the document, whose positions [start, stop) a window is the one to read."""
    starts, ends = np.maximum(document.starts, window.first), np.minimum(document.ends, window.stop)
    for place in np.flatnonzero(starts < ends):
        yield int(place), int(starts[place]), int(ends[place])


def _weights(
    documents: Sequence[ReadDocument], batch: Sequence[Window], length: int
) -> tuple[Tensor, NDArray[np.int64]]:
    """What each position of a batch adds to the means: float32 [parts, rows * length], and int64 [parts], sentences."""
    parts = [
        (row, window, part) for row, window in enumerate(batch) for part in _parts(documents[window.document], window)
    ]
    weights = torch.zeros(len(parts), len(batch) * length)
    for number, (row, window, (place, start, stop)) in enumerate(parts):
        document = documents[window.document]
        first = row * length - window.start
        weights[number, first + start : first + stop] = 1 / float(document.ends[place] - document.starts[place])
    sentences = [int(documents[window.document].rows[place]) for _, window, (place, _, _) in parts]
    return weights, np.array(sentences, dtype=np.int64)


def _states(model: Any, rows: list[NDArray[np.int64]]) -> Sequence[Tensor]:
    """The embeddings and the output of every layer, each [rows, longest, width]."""
    padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.from_numpy(row)
    # Padding is at the end, where a causal model cannot see it from any position that counts.
    padded = padded.to(next(model.parameters()).device)
    # Without the output embedding, whose logits would take most of the memory.
    output = model.base_model(input_ids=padded, use_cache=False, output_hidden_states=True)
    states: Sequence[Tensor] | None = getattr(output, "hidden_states", None)
    width = None if not states else states[-1].shape[-1]
    if not states or any(each.shape != (*padded.shape, width) for each in states):
        raise UserError(
            f"The network {type(model).__name__} does not give the hidden states of its layers, so it cannot be probed."
        )
    return states
