"""Skip harmful updates, on all ranks alike and without waiting for the device.

A loss that is not finite has gradients that are not finite, and DeepSpeed (from ZeRO 1 on) skips an update whose
gradient norm is not finite. So to skip a spike, its loss is multiplied by NaN before the backward pass.

Skipping by the spread of recent losses follows OLMo-core's SkipStepOptimizer (Allen AI, 2024).
"""

import torch
from torch import Tensor

# Number of recent losses to remember, and the minimum before any loss counts as a spike.
WINDOW = 128
_FEWEST = WINDOW // 2


class SpikeGuard:
    """Detect spikes by the losses of the last updates.

    Args:
        sigmas: a loss this many standard deviations above the mean of the last 128 is a spike.
        device: of the losses.
    """

    def __init__(self, sigmas: float, device: torch.device) -> None:
        self._sigmas = sigmas
        self._losses = torch.zeros(WINDOW, device=device)
        self._count = torch.zeros((), device=device)

    def factor(self, loss: Tensor) -> Tensor:
        """Return NaN if `loss` is a spike or not finite, else 1, and remember the loss.

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
        """Forget all losses, because another objective has another scale."""
        self._count = torch.zeros_like(self._count)

    def state(self) -> dict[str, Tensor]:
        """Return the state for `load`."""
        return {"losses": self._losses.cpu(), "count": self._count.cpu()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the state of another guard."""
        self._losses = state["losses"].to(self._losses.device)
        self._count = state["count"].to(self._count.device)
