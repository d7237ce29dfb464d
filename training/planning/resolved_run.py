"""Resolve a run: what follows from its settings on some ranks of some device is decided here, and passed on."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from training.config import ResolvedConfig
from training.engine.deepspeed_config import Precision, deepspeed_config
from training.engine.engine import choose_precision
from training.schedule import Horizon, plan_horizon


@dataclass(frozen=True)
class ResolvedRun:
    """The settings of a run and all that follows from them before its data is read.

    Attributes:
        config: the settings; after `training.data.prepare` with what the datasets decide.
        horizon: the steps and the shape of the batch.
        precision: what `training.precision` comes to on the device.
        on_gpu: whether the ranks have GPUs.
    """

    config: ResolvedConfig
    horizon: Horizon
    precision: Precision
    on_gpu: bool

    def deepspeed(self, parameters: int) -> dict[str, Any]:
        """Return DeepSpeed's configuration for a model of so many parameters.

        Raises:
            UserError: see `deepspeed_config`.
        """
        return deepspeed_config(
            self.config.training, self.horizon, self.precision, parameters=parameters, on_gpu=self.on_gpu
        )

    def changed(self, ranks: int | None = None, **training: Any) -> "ResolvedRun":
        """Return the run on other ranks, or with other settings of `training`.

        Raises:
            UserError: they do not fit together.
        """
        config = self.config.model_copy(update={"training": self.config.training.model_copy(update=training)})
        horizon = plan_horizon(config.training, config.data.context_length, ranks or self.horizon.ranks)
        return replace(self, config=config, horizon=horizon)

    def with_micro_batch(self, blocks: int) -> "ResolvedRun":
        """Return the run with another micro-batch, under unchanged settings.

        Raises:
            UserError: it does not divide a rank's share of the batch.
        """
        return replace(self, horizon=self.changed(micro_batch_size=blocks).horizon)


def resolve_run(config: ResolvedConfig, horizon: Horizon, device: torch.device) -> ResolvedRun:
    """Resolve a run for ranks on a device.

    Raises:
        UserError: the device or DeepSpeed cannot train with these settings.
    """
    run = ResolvedRun(config, horizon, choose_precision(config.training, device), device.type == "cuda")
    # Buckets alone depend on the number of parameters.
    run.deepspeed(parameters=1)
    return run
