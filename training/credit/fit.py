"""Learn a network for `phf credit`: early stopping on held-out sentences, and a state to resume from."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from scorers.errors import UserError
from scorers.stored import Count
from training.credit.lists import Learnable, ListDraw, Lists
from training.credit.loss import calibration, listwise, score_log_odds
from training.credit.network import TokenCredit, aggregate
from training.credit.settings import CreditConfig
from training.data.store import TokenStore
from training.disk import refuse_link, write_atomically

# How many steps' worth of held-out lists a measurement takes.
_CHECKED = 8
STATE = "state.safetensors"
# Of each parameter: the best so far, the present one, and the moments of AdamW.
_PARTS = ("best", "network", "mean", "square")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Fitted:
    """A network, and how it was found.

    Attributes:
        network: on the CPU.
        steps: that were made.
        best_step: whose weights the network has.
        loss: of that step, on held-out sentences, in nats.
    """

    network: TokenCredit
    steps: int
    best_step: int
    loss: float


@dataclass(frozen=True)
class Problem:
    """What to learn.

    Attributes:
        store: has the column.
        column: of scores.
        chosen: the sentences.
        vocabulary: number of token ids.
        scale: the score that counts as 1.
        config: how to learn it.
        key: hash of all of this; a state with another key is not resumed.
    """

    store: TokenStore
    column: str
    chosen: Learnable
    vocabulary: int
    scale: float
    config: CreditConfig
    key: str


def fit(problem: Problem, folder: Path, device: str, progress: Progress) -> Fitted:
    """Learn, or resume the state in a folder, with the same result on a CPU.

    Args:
        problem: what to learn.
        folder: of the state, which exists.
        device: torch device.
        progress: called with the steps done and the most.

    Raises:
        UserError: the loss is not finite.
    """
    config, learner = problem.config, _Learner(problem, torch.device(device))
    if not learner.load(folder):
        learner.check()
    while learner.step < config.steps and learner.step - learner.best_step < config.patience * config.check_every:
        for _ in range(min(config.check_every, config.steps - learner.step)):
            learner.learn()
            progress(learner.step, config.steps)
        learner.check()
        learner.save(folder)
    network = TokenCredit(problem.vocabulary, config.width, config.window)
    network.load_state_dict(learner.best)
    return Fitted(network, learner.step, learner.best_step, learner.best_loss)


class _Where(BaseModel):
    """The numbers of a state; its tensors stand in the same file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    step: Count
    best_step: Count
    best_loss: float


class _Learner:
    """The network, its optimiser, and the best weights so far."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        self._problem, self._device = problem, device
        config, store = problem.config, problem.store
        self._scores = store.scores(problem.column)
        self.step, self.best_step, self.best_loss = 0, 0, math.inf
        self.best: dict[str, Tensor] = {}
        lists: dict[str, Any] = {"lists": config.lists, "size": config.list_size, "window": config.window}
        self._learning = ListDraw(store, self._scores, problem.chosen.learning, seed=config.seed, **lists)
        self._held_out = ListDraw(store, self._scores, problem.chosen.held_out, seed=config.seed, **lists)
        self._network = TokenCredit(problem.vocabulary, config.width, config.window)
        self._network.start(config.seed, self._first_log_odds())
        self._network.to(device)
        self._optimiser = torch.optim.AdamW(self._network.parameters(), lr=config.learning_rate, weight_decay=0.0)

    def learn(self) -> None:
        """Make one step."""
        loss = self._loss(self._learning.draw(self.step))
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        self.step += 1

    def check(self) -> None:
        """Measure the loss on held-out sentences, and keep the weights if it is the lowest so far."""
        with torch.no_grad():
            losses = [float(self._loss(self._held_out.draw(number))) for number in range(_CHECKED)]
        loss = sum(losses) / len(losses)
        if not math.isfinite(loss):
            raise UserError(f"The loss is {loss} after {self.step:,} steps. Lower learning_rate.")
        if loss < self.best_loss:
            self.best_step, self.best_loss = self.step, loss
            self.best = {name: each.detach().cpu().clone() for name, each in self._network.state_dict().items()}

    def save(self, folder: Path) -> None:
        """Write the state, whole or not at all."""
        where = _Where(key=self._problem.key, step=self.step, best_step=self.best_step, best_loss=self.best_loss)
        tensors = {f"best.{name}": each for name, each in self.best.items()}
        for name, parameter in self._network.named_parameters():
            moments = self._optimiser.state[parameter]
            tensors[f"network.{name}"] = parameter.detach()
            tensors[f"mean.{name}"], tensors[f"square.{name}"] = moments["exp_avg"], moments["exp_avg_sq"]
        plain = {name: each.cpu().contiguous() for name, each in tensors.items()}
        write_atomically(folder / STATE, save_tensors(plain, {"where": where.model_dump_json()}))

    def load(self, folder: Path) -> bool:
        """Resume a state; return False where there is none, or it is damaged or of another problem."""
        try:
            refuse_link(folder / STATE)
            with safe_open(folder / STATE, "pt") as file:
                where = _Where.model_validate_json((file.metadata() or {})["where"])
                if where.key != self._problem.key:
                    return False
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            shapes = {name: each.shape for name, each in self._network.state_dict().items()}
            if any(tensors[f"{part}.{name}"].shape != shape for part in _PARTS for name, shape in shapes.items()):
                return False
            best, network = ({name: tensors[f"{part}.{name}"] for name in shapes} for part in ("best", "network"))
            moments = [
                {
                    "step": torch.tensor(float(where.step)),
                    "exp_avg": tensors[f"mean.{name}"].to(self._device),
                    "exp_avg_sq": tensors[f"square.{name}"].to(self._device),
                }
                for name, _ in self._network.named_parameters()
            ]
        except (OSError, KeyError, TypeError, ValueError, SafetensorError, ValidationError):
            return False
        self._network.load_state_dict(network)
        for parameter, state in zip(self._network.parameters(), moments, strict=True):
            self._optimiser.state[parameter] = state
        self.best, self.step, self.best_step, self.best_loss = best, where.step, where.best_step, where.best_loss
        return True

    def _loss(self, drawn: Lists) -> Tensor:
        config, flat = self._problem.config, drawn.flat.to(self._device)
        scores = torch.from_numpy(self._scores[drawn.sentences.ravel()])
        wanted = score_log_odds(scores, self._problem.scale, config.least).to(self._device)
        order = torch.from_numpy(drawn.order).to(self._device)
        total = wanted.new_zeros(())
        for log_odds in self._network(flat):
            found = aggregate(log_odds, flat.sentence, flat.count, config.aggregate)
            total = total + listwise(found.view(order.shape), order) + calibration(found, wanted)
        return total

    def _first_log_odds(self) -> float:
        """The log-odds of a token with which sentences have the mean score, if all tokens are alike."""
        problem, config = self._problem, self._problem.config
        chosen = problem.chosen.learning
        share = float(self._scores[chosen].mean(dtype=np.float64)) / problem.scale
        share = min(max(share, config.least), 1 - config.least)
        length = math.log(float(np.diff(problem.store.sentence_offsets)[chosen].mean()))
        spread = {"soft-max": -length, "mean": 0.0, "soft-min": length}[config.aggregate]
        return math.log(share / (1 - share)) + spread
