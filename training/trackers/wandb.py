"""The Weights & Biases tracker, online or offline."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.config import WandbConfig
from training.trackers.sink import CLOSING_S, Opening


class Wandb:
    """A W&B run, with an id chosen by phf, so that a resumed run is the same run there.

    Online, a run that goes back is rewound; if W&B refuses that, a new one is started with the current lines. Offline,
    each process writes all lines, so that one folder has the whole run to sync; folders of earlier processes are
    renamed to `superseded-…`.

    Console capture is off, so nothing that is printed is sent. Neither is the metadata that W&B would collect: the
    command line, which may hold the key of an object store, and host, user and packages.
    """

    def __init__(self, config: WandbConfig, opening: Opening) -> None:
        import uuid

        import wandb

        quiet: dict[str, Any] = {"console": "off", "silent": True, "save_code": False, "disable_git": True, "host": ""}
        # The first limits how long W&B waits for a server that does not answer; the others switch off metadata.
        may_be_unknown = {"finish_timeout": CLOSING_S, "x_disable_meta": True, "x_save_requirements": False}
        quiet |= {name: value for name, value in may_be_unknown.items() if name in wandb.Settings.model_fields}
        self.run_id = opening.run_id or uuid.uuid4().hex[:12]
        self.continues = config.mode == "online" and opening.run_id is not None
        known: dict[str, Any] = {"id": self.run_id}
        if config.mode == "online":
            known["resume"] = "allow"
        else:
            # Offline, there is no server to ask for the earlier run.
            _supersede(Path(opening.folder) / "wandb", self.run_id)
        if self.continues and opening.goes_back:
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
            # Not every server can rewind a run, and none to before its first line.
            self.run_id, self.continues = uuid.uuid4().hex[:12], False
            self._run = begin({"id": self.run_id, "resume": "allow"})

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log the numbers of a step; W&B merges those of the same step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Write or send remaining values."""
        self._run.finish()


def _supersede(folder: Path, run_id: str) -> None:
    """Rename the folders of a run that earlier processes wrote, so that `wandb sync` no longer finds them."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir() and path.name.startswith("offline-run-") and path.name.endswith(f"-{run_id}"):
            # Folders of the same second have the same name.
            free = (f"superseded-{number}-{path.name}" for number in itertools.count(1))
            path.rename(next(target for name in free if not (target := path.with_name(name)).exists()))
