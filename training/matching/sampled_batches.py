"""The batches of `phf match`: samples of the proposal, drawn when their step comes, each token with its weight."""

from typing import Any

import numpy as np

from training.data.batches import Batch, Batches
from training.matching.drawing import key_of
from training.matching.session import Session
from training.model.language_model import LanguageModel


class SampledBatches(Batches):
    """Batches of samples. They depend on the weights and on the proposal, so they cannot be prefetched.

    Args:
        session: draws the samples.
        model: the model that is trained.
        batch_size: samples per step, over all ranks.
        predicted: tokens by which the engine divides the sum of a step (`Horizon.predicted_per_step`).
    """

    def __init__(self, session: Session, model: LanguageModel, batch_size: int, predicted: int) -> None:
        self.batch_size = batch_size
        self._session, self._model = session, model
        # The engine's mean is over tokens, and this one over samples.
        self._scale = predicted / batch_size

    def part(self, step: int, begin: int, end: int) -> Batch:
        """Draw the samples of a step, and return those of this rank. Called on every rank, for its own part."""
        found = self._session.sample(self._model, key_of("step", step), self.batch_size)
        if (found.own.start, found.own.stop) != (begin, end):
            raise ValueError("a rank draws its own part of a batch")
        weights = self._session.matcher.weigh(found.logs)[found.own] * self._scale
        scores = np.where(found.blocks.counted.numpy(), weights[:, None], 0.0)
        return Batch(found.blocks.input_ids.numpy(), scores.astype(np.float32))

    def origin(self, step: int) -> dict[str, Any]:
        """See `Batches`: the key of the samples."""
        return {"samples": self.batch_size, "key": key_of("step", step)}
