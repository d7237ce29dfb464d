"""Weights & Biases, online or offline."""

from collections.abc import Mapping
from typing import Any

from training.config import WandbConfig
from training.run.trackers.sink import CLOSING_S, Opening


class Wandb:
    """A run of W&B; its id is ours, so that a run that goes on is the same there.

    Its console capture is off: what a run prints, and whatever else writes to the terminal, is not sent. Neither is
    what W&B would collect: the command line, which may hold the key of an object store, and host, user and packages.

    Args:
        config: of the tracker.
        opening: of the run.
    """

    def __init__(self, config: WandbConfig, opening: Opening) -> None:
        import uuid

        import wandb

        quiet: dict[str, Any] = {"console": "off", "silent": True, "save_code": False, "disable_git": True, "host": ""}
        # Without the first it would hold the process for as long as its server does not answer; the others collect.
        may_be_unknown = {"finish_timeout": CLOSING_S, "x_disable_meta": True, "x_save_requirements": False}
        quiet |= {name: value for name, value in may_be_unknown.items() if name in wandb.Settings.model_fields}
        self.run_id = opening.run_id or uuid.uuid4().hex[:12]
        self._run: Any = wandb.init(
            project=config.project,
            entity=config.entity,
            name=config.name or opening.name,
            id=self.run_id,
            # Offline there is nobody to ask whether the run is known.
            resume="allow" if config.mode == "online" else None,
            mode=config.mode,
            dir=opening.folder,
            config=dict(opening.config),
            allow_val_change=True,
            settings=wandb.Settings(**quiet),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """The numbers of a step; W&B puts together what is logged for the same one."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Write or send what is left."""
        self._run.finish()
