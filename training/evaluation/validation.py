"""A validation loss while training: how well the model predicts held-out text, on the ranks that train it.

It costs forward passes alone, over few tokens and seldom enough, so that it is always on where there is held-out text.
Without a limit on the tokens it is what `phf evaluate` calls bits per byte.
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
from training.data.stream import DocumentTokens
from training.evaluation.heldout import Window, batches_of, windows
from training.loss_mask import TokenTerms
from training.objectives import Objective
from training.runs.best import VALIDATION_LOSS

# A forward pass is a third of what a token costs that is trained on. So much of the time of the steps between two
# validations one may take, and of the time of the whole run; and there are no more of them in a run.
_FORWARD, _SHARE, _SHARE_AT_ONCE, _MOST = 1 / 3, 0.02, 0.05, 50
# Beyond so many a mean hardly moves.
_MOST_TOKENS = 1 << 16


@dataclass(frozen=True)
class CountedLoss(Objective):
    """-log p of the predicted tokens whose score is 1, and nothing of those whose score is 0."""

    name: ClassVar[str] = "counted"

    def terms(self, ce: Tensor, against: Tensor | None, scores: Tensor, values: Tensor | None) -> TokenTerms:
        """Cross-entropy, where it counts; measured as `counted`."""
        counted = ce * scores
        return TokenTerms(counted, {"counted": counted})


@dataclass(frozen=True)
class Validation:
    """What is predicted, and when.

    Attributes:
        every: steps from one validation to the next; there is one at the last step too.
        documents: how many are predicted, each in part where they are longer than the run allows.
        tokens, bytes: that are predicted, of their text.
        read: tokens that pass through the model.
        batches: scores are 1 where a token is predicted, and 0 where it is context or padding.
    """

    every: int
    documents: int
    tokens: int
    bytes: int
    read: int
    batches: tuple[Batch, ...]

    def is_due(self, step: int, steps: int) -> bool:
        """Whether the model is validated after a step of `steps`."""
        return step % self.every == 0 or step == steps

    def share_of_time(self, steps: int, tokens_per_step: int) -> float:
        """About how much of the time of all steps it takes."""
        return -(-steps // self.every) * self.read * _FORWARD / (steps * tokens_per_step)

    def figures(self, nats: Sequence[float]) -> dict[str, float]:
        """The figures of a model.

        Args:
            nats: what the predicted tokens of each batch cost together.

        Returns:
            `loss`, in nats a predicted token, and `bits_per_byte`.
        """
        total = math.fsum(nats)
        return {"loss": total / self.tokens, "bits_per_byte": total / math.log(2) / self.bytes}


def choose_validation(
    data: PreparedData, steps: int, tokens_per_step: int, began_with: int | None = None
) -> Validation | None:
    """What a run is validated on and how often; None where it is not, or where no text is held out.

    The documents are the first of those that `phf evaluate` measures bits per byte on. They, and the batches that they
    are read in, depend on the dataset and the settings alone, not on the ranks.

    Args:
        data: of the run.
        steps: of the run.
        tokens_per_step: of a global batch.
        began_with: steps of the run when it began, if it was extended since: its losses are of the same text all along.
    """
    config, stream, store = data.config.training, data.stream, data.store
    held_out = stream.held_out_documents()
    held_out = held_out[store.text_bytes[held_out] > 0]
    if config.validate_every == 0 or not len(held_out):
        return None
    context = stream.options.context_length
    budget = max(context, min(_MOST_TOKENS, int((began_with or steps) * tokens_per_step * _SHARE_AT_ONCE / _FORWARD)))
    order = np.random.default_rng(stream.options.held_out_seed).permutation(held_out)
    documents: list[DocumentTokens] = []
    every: list[Window] = []
    for index in order:
        document = stream.document(int(index))
        if not documents and len(document.input_ids) > max(context, budget // 2):
            # Windows overlap, so that nearly all of a long document is read twice.
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
        # Only what is a checkpoint can be the best.
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
