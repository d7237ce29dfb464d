"""Finetune a model to classify texts: a linear layer on the last hidden state of each text's last token."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from scorers.errors import UserError

_CLIP, _WARM_UP = 1.0, 0.1
_FIRST_WEIGHTS = 0.02  # standard deviation

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a classifier learns; see `ClassificationConfig`."""

    epochs: int
    batch_size: int
    learning_rate: float

    def factor(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, relative to the highest one."""
        warm = max(1, round(_WARM_UP * steps))
        return (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)


class Classifier(nn.Module):
    """A causal language model's body and a linear layer.

    All weights are finetuned. Dropout is disabled, so that the global random state does not matter.

    Args:
        causal: a Hugging Face causal language model.
        classes: number of classes.
        seed: of the linear layer's first weights, which are normal with a small deviation.
    """

    def __init__(self, causal: Any, classes: int, seed: int) -> None:
        super().__init__()
        self.body = causal.base_model
        # As wide as the input of the output embedding, which OPT projects its hidden states to.
        weight = torch.empty(classes, causal.get_output_embeddings().weight.shape[1])
        weight.normal_(0, _FIRST_WEIGHTS, generator=torch.Generator().manual_seed(seed))
        self.head = nn.Linear(weight.shape[1], classes)
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.zero_()
        self.head.to(next(self.body.parameters()).device)
        self.eval()

    def forward(self, rows: Rows) -> Tensor:
        """Return logits float32 [n, classes] of rows of token ids, none of which is empty."""
        device = self.head.weight.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        # Padding is at the end, where a causal model cannot see it from the last token.
        ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
        hidden = self.body(input_ids=ids.to(device), use_cache=False).last_hidden_state
        logits: Tensor = self.head(hidden[torch.arange(len(rows), device=device), lengths - 1].float())
        return logits


def finetune(
    classifier: Classifier,
    rows: Rows,
    labels: NDArray[np.int64],
    schedule: Schedule,
    seed: int,
    progress: Callable[[int, int], None],
) -> float:
    """Finetune with AdamW, in a new order each epoch; return the mean loss of the last epoch's steps, in nats.

    Args:
        classifier: learns.
        rows: token ids of each text.
        labels: int64 [n], their classes.
        schedule: how long and how fast.
        seed: of the orders.
        progress: called with the steps done and their total.

    Raises:
        UserError: the loss is not finite.
    """
    generator = np.random.default_rng(seed)
    per_epoch = math.ceil(len(rows) / schedule.batch_size)
    steps = schedule.epochs * per_epoch
    losses: list[float] = []
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=schedule.learning_rate)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule.factor(step, steps))
    for _ in range(schedule.epochs):
        losses = []
        order = generator.permutation(len(rows))
        for start in range(0, len(rows), schedule.batch_size):
            chosen = order[start : start + schedule.batch_size]
            logits = classifier([rows[index] for index in chosen])
            loss = cross_entropy(logits, torch.from_numpy(labels[chosen]).to(logits.device))
            if not torch.isfinite(loss):
                raise UserError("Finetuning on the labelled texts diverged. Lower learning_rate, such as 1e-5.")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(classifier.parameters(), _CLIP)
            optimiser.step()
            rate.step()
            losses.append(float(loss.detach()))
            progress(rate.last_epoch, steps)
    return math.fsum(losses) / len(losses)


@torch.inference_mode()
def predict(classifier: Classifier, rows: Rows, batch_size: int) -> NDArray[np.int64]:
    """Return the class of each row of token ids, int64 [n]; rows of similar length share a forward pass."""
    found = np.zeros(len(rows), dtype=np.int64)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        found[chosen] = classifier([rows[index] for index in chosen]).argmax(dim=-1).cpu().numpy()
    return found


def macro_f1(labels: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """Return the mean over the classes among `labels` int64 [n] of 2 TP / (2 TP + FP + FN)."""
    values = []
    for each in np.unique(labels):
        true, chosen = labels == each, found == each
        values.append(2 * np.sum(true & chosen) / (true.sum() + chosen.sum()))
    return float(np.mean(values))
