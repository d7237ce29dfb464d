"""Weights & Biases, online or offline."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.config import WandbConfig
from training.trackers.sink import CLOSING_S, Opening


class Wandb:
    """A run of W&B; its id is ours, so that a run that goes on is the same there.

    Online, a run that goes back is rewound, and where W&B refuses that, another is begun with the lines that count.
    Offline, each process writes all of them, so that one folder has the whole run to be synced; those of earlier
    processes are renamed to `superseded-…`.

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
        self.goes_on = config.mode == "online" and opening.run_id is not None
        known: dict[str, Any] = {"id": self.run_id}
        if config.mode == "online":
            known["resume"] = "allow"
        else:
            # Offline there is nobody to ask whether the run is known.
            _supersede(Path(opening.folder) / "wandb", self.run_id)
        if self.goes_on and opening.goes_back:
            known = {"resume_from": f"{self.run_id}?_step={opening.step}"}

        def begin(known: Mapping[str, Any]) -> Any:
            return wandb.init(
                project=config.project,
                entity=config.entity,
                name=config.name or opening.name,
                mode=config.mode,
                dir=opening.folder,
                config=dict(opening.config),
                allow_val_change=True,
                settings=wandb.Settings(**quiet),
                **known,
            )

        try:
            self._run: Any = begin(known)
        except Exception:
            if "resume_from" not in known:
                raise
            # Not every server rewinds, and none to before its first line.
            self.run_id, self.goes_on = uuid.uuid4().hex[:12], False
            self._run = begin({"id": self.run_id, "resume": "allow"})

    def log(self, values: Mapping[str, float], step: int) -> None:
        """The numbers of a step; W&B puts together what is logged for the same one."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Write or send what is left."""
        self._run.finish()


def _supersede(folder: Path, run_id: str) -> None:
    """Rename what earlier processes wrote of a run, so that `wandb sync` finds it no more."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir() and path.name.startswith("offline-run-") and path.name.endswith(f"-{run_id}"):
            # Two of the same second have one name.
            free = (f"superseded-{number}-{path.name}" for number in itertools.count(1))
            path.rename(next(target for name in free if not (target := path.with_name(name)).exists()))
