"""The validation loss: the loss on held-out text during training, measured on the ranks that train.

It needs only forward passes over few tokens, seldom enough that it is always on if there is held-out text. Without a
limit on the tokens it equals the bits per byte of `phf evaluate`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from torch import Tensor

from training.config import TrainingConfig
from training.data.batches import Batch
from training.data.prepare import PreparedData
from training.data.tagged_stream import DocumentTokens
from training.evaluation.held_out_loss import Window, batches_of, windows
from training.loss_mask import TokenTerms
from training.objectives import Objective
from training.runs.best import VALIDATION_LOSS

# The cost of a forward pass relative to training on a token; the share of the time between two validations that one may
# take; its largest share of the whole run; and the maximum number of validations in a run.
_FORWARD, _SHARE, _SHARE_AT_ONCE, _MOST = 1 / 3, 0.02, 0.05, 50
# With more tokens the mean hardly changes.
_MOST_TOKENS = 1 << 16


@dataclass(frozen=True)
class CountedLoss(Objective):
    """-log p of the predicted tokens whose score is 1; tokens whose score is 0 are not counted."""

    name: ClassVar[str] = "counted"

    def terms(self, ce: Tensor, against: Tensor | None, scores: Tensor, values: Tensor | None) -> TokenTerms:
        """Cross-entropy of the counted tokens, reported as `counted`."""
        counted = ce * scores
        return TokenTerms(counted, {"counted": counted})


@dataclass(frozen=True)
class Validation:
    """The held-out text of the validation, and when to validate.

    Attributes:
        every: steps between validations; the last step is always validated.
        documents: number of documents, of which long ones are only predicted in part.
        tokens, bytes: amount of text that is predicted.
        read: tokens that pass through the model.
        batches: scores are 1 for predicted tokens, and 0 for context and padding.
    """

    every: int
    documents: int
    tokens: int
    bytes: int
    read: int
    batches: tuple[Batch, ...]

    def is_due(self, step: int, steps: int) -> bool:
        """Whether to validate after `step` of `steps`."""
        return step % self.every == 0 or step == steps

    def share_of_time(self, steps: int, tokens_per_step: int) -> float:
        """Its approximate share of the time of all steps."""
        return -(-steps // self.every) * self.read * _FORWARD / (steps * tokens_per_step)

    def figures(self, nats: Sequence[float]) -> dict[str, float]:
        """The figures of a model: `loss`, in nats per predicted token, and `bits_per_byte`.

        Args:
            nats: total loss of the predicted tokens of each batch.
        """
        total = math.fsum(nats)
        return {"loss": total / self.tokens, "bits_per_byte": total / math.log(2) / self.bytes}


def choose_validation(
    data: PreparedData, steps: int, tokens_per_step: int, planned_steps: int | None = None
) -> Validation | None:
    """Choose the held-out text and the interval of the validation; None if it is off or no text is held out.

    The documents are the first of those on which `phf evaluate` measures bits per byte. They and their batches depend
    only on the dataset and the settings, not on the ranks.

    Args:
        data: the prepared data of the run.
        steps: number of steps of the run.
        tokens_per_step: tokens of a global batch.
        planned_steps: number of steps when the run started; an extended run keeps validating on the same text.
    """
    config, stream, store = data.config.training, data.stream, data.store
    held_out = stream.held_out_documents()
    held_out = held_out[store.text_bytes[held_out] > 0]
    if config.validate_every == 0 or not len(held_out):
        return None
    context = stream.options.context_length
    budget = max(
        context, min(_MOST_TOKENS, int((planned_steps or steps) * tokens_per_step * _SHARE_AT_ONCE / _FORWARD))
    )
    order = np.random.default_rng(stream.options.held_out_seed).permutation(held_out)
    documents: list[DocumentTokens] = []
    every: list[Window] = []
    for index in order:
        document = stream.document(int(index))
        if not documents and len(document.input_ids) > max(context, budget // 2):
            # Windows overlap, so nearly all of a long document is read twice.
            document = _cut(data, document, max(context, budget // 2))
        own = list(windows(len(documents), len(document.input_ids), context))
        if documents and sum(map(_length, (*every, *own))) > budget:
            break
        documents.append(document)
        every += own
    batches = tuple(_batch(documents, rows) for rows in batches_of(every))
    read, tokens = (sum(batch.input_ids.size for batch in batches), sum(_predicted(batch) for batch in batches))
    if not tokens:
        return None
    return Validation(
        every=_every(config, steps, tokens_per_step, read),
        documents=len(documents),
        tokens=tokens,
        bytes=sum(document.text_bytes for document in documents),
        read=read,
        batches=batches,
    )


def _every(config: TrainingConfig, steps: int, tokens_per_step: int, read: int) -> int:
    if config.validate_every is not None:
        return config.validate_every
    if config.best_metric == VALIDATION_LOSS:
        # Only a checkpoint can be the best.
        return config.save_every
    return max(math.ceil(read * _FORWARD / (_SHARE * tokens_per_step)), math.ceil(steps / _MOST))


def _cut(data: PreparedData, document: DocumentTokens, tokens: int) -> DocumentTokens:
    ids, is_text = document.input_ids[:tokens], document.is_text[:tokens]
    return replace(
        document, input_ids=ids, is_text=is_text, text_bytes=max(1, len(data.tokenizer.decode(ids[is_text]).encode()))
    )


def _length(window: Window) -> int:
    return window.stop - window.start


def _batch(documents: Sequence[DocumentTokens], rows: Sequence[Window]) -> Batch:
    ids = np.zeros((len(rows), max(map(_length, rows))), dtype=np.int64)
    counted = np.zeros(ids.shape, dtype=np.float32)
    for row, window in enumerate(rows):
        document, length = documents[window.document], _length(window)
        ids[row, :length] = document.input_ids[window.start : window.stop]
        new = window.first - window.start
        counted[row, new:length] = document.is_text[window.first : window.stop]
    return Batch(ids, counted)


def _predicted(batch: Batch) -> int:
    return int(batch.scores.sum(dtype=np.float64))
