"""The models of a run of `phf match` and their samples, shared by all ranks."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from training.distributed.world import World
from training.matching.constraints import Floats
from training.matching.drawing import Blocks, Drawer
from training.matching.energy import EnergyModel
from training.matching.estimates import SampleLogs
from training.matching.matcher import Matcher
from training.matching.scoring import Judges
from training.model.language_model import LanguageModel


@dataclass(frozen=True)
class Gathered:
    """Samples that the ranks drew together.

    Attributes:
        logs: of all samples.
        features: float64 [n, k], of all samples.
        own: which of them this rank drew.
        blocks: those of this rank.
    """

    logs: SampleLogs
    features: Floats
    own: slice
    blocks: Blocks


class Session:
    """Draws samples of the proposal, and knows all models' log-probabilities of them. Every rank makes the same calls.

    Each rank draws and scores its share, and the ranks add up their figures; so all have the same, and with another
    number of ranks they differ by rounding.

    Args:
        world: the ranks.
        prior: the model before, on the device, in the precision of the training; never changed.
        drawer: draws samples.
        judges: score them.
        on_policy: whether the proposal is always the model itself.

    Attributes:
        energy: the target; set before the first step.
        matcher: weighs samples; likewise.
    """

    energy: EnergyModel
    matcher: Matcher

    def __init__(self, world: World, prior: Any, drawer: Drawer, judges: Judges, *, on_policy: bool) -> None:
        self.drawer = drawer
        self._world, self._prior, self._judges, self._on_policy = world, prior, judges, on_policy
        self._replaced: Any | None = None

    def prior_features(self, key: int, number: int) -> Floats:
        """Draw samples of the prior, and return their features, float64 [number, k]."""
        own = self._share(number)
        drawn = self.drawer.draw(self._prior, key, own.start, own.stop)
        return self._together(own, number, self._judges.features(drawn))

    def sample(self, model: LanguageModel, key: int, number: int, *, of_model: bool = False) -> Gathered:
        """Draw samples of the proposal, or of the model.

        Args:
            model: the model that is trained.
            key: from `key_of`.
            number: samples over all ranks.
            of_model: whether the model itself is the proposal.
        """
        own = self._share(number)
        source = self._proposal
        proposal = model.causal if of_model or source is None else source
        drawn = self.drawer.draw(proposal, key, own.start, own.stop)
        blocks = self.drawer.blocks(drawn)
        log_model = self.drawer.log_probabilities(model.causal, blocks)
        log_prior = self.drawer.log_probabilities(self._prior, blocks)
        log_proposal = log_model if proposal is model.causal else log_prior
        if proposal is not model.causal and proposal is not self._prior:
            log_proposal = self.drawer.log_probabilities(proposal, blocks)
        columns = [log_prior, log_proposal, log_model, *self._judges.features(drawn).T]
        found = self._together(own, number, np.stack(columns, axis=1))
        features = found[:, 3:]
        prior, at_proposal, at_model = found[:, :3].T.copy()
        return Gathered(
            SampleLogs(prior, prior + self.energy.log_factor(features), at_proposal, at_model), features, own, blocks
        )

    def replace_proposal(self, model: LanguageModel) -> None:
        """Make a copy of the model the proposal from here on."""
        if self._on_policy:
            return
        weights = {name: each.detach() for name, each in model.state_dict().items()}
        self._take({name.removeprefix("causal."): each for name, each in _unpadded(model, weights).items()})

    @property
    def is_on_policy(self) -> bool:
        """Whether samples are always drawn from the model itself."""
        return self._on_policy

    @property
    def _proposal(self) -> Any | None:
        """The proposal; None for the model that is trained."""
        if self._on_policy:
            return None
        return self._prior if self._replaced is None else self._replaced

    def state(self) -> dict[str, Any]:
        """Return what the next step depends on besides the model and its optimiser."""
        weights = None if self._replaced is None else dict(self._replaced.state_dict())
        return {"proposal": weights, "matcher": self.matcher.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.matcher.load(state["matcher"])
        if state["proposal"] is None:
            self._replaced = None
        else:
            self._take(state["proposal"])

    def _take(self, weights: Mapping[str, torch.Tensor]) -> None:
        if self._replaced is None:
            self._replaced = copy.deepcopy(self._prior)
        self._replaced.load_state_dict(weights)

    def _share(self, number: int) -> slice:
        rank, ranks = self._world.rank, self._world.size
        return slice(number * rank // ranks, number * (rank + 1) // ranks)

    def _together(self, own: slice, number: int, values: Floats) -> Floats:
        every = torch.zeros((number, values.shape[1]), dtype=torch.float64)
        every[own] = torch.from_numpy(values)
        return np.asarray(self._world.sum(every).numpy(), dtype=np.float64)


def _unpadded(model: LanguageModel, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = model.padding.remove(weights, prefix="causal.")
    return {name: each for name, each in found.items() if name.startswith("causal.")}
