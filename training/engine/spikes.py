"""Updates that would do harm are skipped: on all ranks alike, and without waiting for the device.

A loss that is no number has gradients that are none either, and DeepSpeed (from ZeRO 1 on) skips an update whose
gradient norm is none. So to skip the update of a spike, its loss is multiplied by NaN before the gradients are taken.

Skipping by the spread of recent losses follows OLMo-core's SkipStepOptimizer (Allen AI, 2024).
"""

import torch
from torch import Tensor

# Losses that are remembered, and how many of them there must be before any is called a spike.
WINDOW = 128
_FEWEST = WINDOW // 2


class SpikeGuard:
    """Knows the losses of the last updates.

    Args:
        sigmas: standard deviations above the mean of the last 128 losses at which one is a spike.
        device: where losses are.
    """

    def __init__(self, sigmas: float, device: torch.device) -> None:
        self._sigmas = sigmas
        self._losses = torch.zeros(WINDOW, device=device)
        self._count = torch.zeros((), device=device)

    def factor(self, loss: Tensor) -> Tensor:
        """NaN where `loss` is a spike or no number, else 1, after which it is remembered.

        Args:
            loss: scalar, of the whole global batch.
        """
        loss = loss.detach().float()
        known = torch.arange(WINDOW, device=loss.device) >= WINDOW - self._count
        mean = (self._losses * known).sum() / self._count.clamp(min=1)
        variance = ((self._losses - mean).square() * known).sum() / self._count.clamp(min=1)
        spike = (self._count >= _FEWEST) & (loss > mean + self._sigmas * variance.sqrt())
        bad = spike | ~loss.isfinite()
        later = torch.cat([self._losses[1:], loss.reshape(1)])
        self._losses = torch.where(bad, self._losses, later)
        self._count = torch.where(bad, self._count, (self._count + 1).clamp(max=WINDOW))
        return torch.where(bad, torch.full_like(loss, torch.nan), torch.ones_like(loss))

    def forget(self) -> None:
        """Begin anew: another loss is another scale."""
        self._count = torch.zeros_like(self._count)

    def state(self) -> dict[str, Tensor]:
        """What `load` takes up again."""
        return {"losses": self._losses.cpu(), "count": self._count.cpu()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Remember what another guard did."""
        self._losses = state["losses"].to(self._losses.device)
        self._count = state["count"].to(self._count.device)
