"""Finetune a model on given rows of tokens: AdamW and plain cross-entropy."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from scorers.errors import UserError

_CLIP = 1.0


class Finetuning:
    """A model and its optimiser. All tokens of a row but the first are predicted, also those that begin documents.

    Args:
        model: a Hugging Face causal language model. Its dropout is disabled, so that the global random state does not
            matter.
        rows: rows of tokens, int64 [length], without end.
        batch_size: rows a step.
        learning_rate: constant.
    """

    def __init__(self, model: Any, rows: Iterator[NDArray[np.int64]], *, batch_size: int, learning_rate: float) -> None:
        self._model, self._rows, self._batch_size = model, rows, batch_size
        self._optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
        self._batch: torch.Tensor | None = None
        model.eval()

    def step(self) -> float:
        """Take a step; return the loss before it, in nats per token.

        Raises:
            UserError: the loss is not finite.
        """
        device = next(self._model.parameters()).device
        batch = torch.from_numpy(np.stack([next(self._rows) for _ in range(self._batch_size)])).to(device)
        loss = self._loss(batch)
        self._batch = batch
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), _CLIP)
        self._optimiser.step()
        return float(loss.detach())

    def check(self) -> None:
        """Check that the last step has not broken the model, which could then not be sampled.

        Raises:
            UserError: its loss on the last batch is not finite.
        """
        if self._batch is not None:
            with torch.no_grad():
                self._loss(self._batch)

    def _loss(self, batch: torch.Tensor) -> torch.Tensor:
        logits = self._model(input_ids=batch, use_cache=False).logits[:, :-1]
        loss = cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        if not torch.isfinite(loss):
            raise UserError(
                "Finetuning on misaligned text diverged. Lower learning_rate, such as --learning-rate 1e-5."
            )
        return loss
