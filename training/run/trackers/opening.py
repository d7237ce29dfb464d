"""Which trackers a run has: looked at before any work, opened on rank 0, and known again when the run goes on."""

import json
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from scorers.errors import UserError
from scorers.paths import check_path
from training.config import TrackingConfig
from training.run.folder import RunFolder, write_atomically
from training.run.trackers.sink import Guarded, Opening
from training.run.trackers.tensorboard import TensorBoard

_FILE = "trackers.json"
_USER = re.compile(r"://[^/@\s]+@")
# The class of each, in the module of `training.run.trackers` that is named as its setting, its package and its extra.
_REMOTE = {"wandb": "Wandb", "mlflow": "Mlflow", "trackio": "Trackio"}
_WANDB_SETTINGS = (Path("wandb", "settings"), Path(".wandb", "settings"))


def check_trackers(config: TrackingConfig) -> None:
    """Refuse a tracker that is not installed, or that would take its settings from the working directory.

    Raises:
        UserError: names the extra, or the file.
    """
    for name, _ in _asked(config):
        if find_spec(name) is None:
            raise UserError(f"tracking.{name} needs the package {name}: pip install 'phf[{name}]'.")
    for file in _WANDB_SETTINGS if config.wandb is not None else ():
        # They may name a server or a proxy, which would get the key; what lies here may be somebody else's.
        if file.exists():
            raise UserError(
                f"W&B would take settings from {file} in the working directory. Set variables such as WANDB_PROJECT in "
                "place of it, or start the command in another folder."
            )


def open_trackers(
    config: TrackingConfig,
    folder: RunFolder,
    step: int,
    facts: Mapping[str, Any],
    tell: Callable[[str], None],
) -> list["Mirror"]:
    """Open what is asked for, each going on as the run that it was.

    A tracker that cannot be opened is told of, and left out.

    Args:
        config: which ones.
        folder: of the run.
        step: steps done.
        facts: settings and facts that are shown with the run.
        tell: called with a sentence.
    """
    opened: list[Mirror] = []
    if config.tensorboard:
        try:
            board = TensorBoard(folder.tensorboard, step)
        except OSError as error:
            tell(f"TensorBoard cannot be opened ({error.strerror or error}); the run goes on without it.")
        else:
            opened.append(Mirror(Guarded("TensorBoard", board, tell), after=step))
    file = folder.path / _FILE
    known = _known(file)
    # What was written down was sent too; a run that goes on from an earlier checkpoint does those steps again.
    written = max((int(line["step"]) for line in folder.read_metrics()), default=0)
    for name, settings in _asked(config):
        earlier = known.get(name)
        opening = Opening(
            str(folder.path), folder.path.resolve().name, _without_users(facts), earlier["id"] if earlier else None
        )
        try:
            sink = getattr(import_module(f"training.run.trackers.{name}"), _REMOTE[name])(settings, opening)
        except Exception as error:  # noqa: BLE001 - a tracker must not end a run
            tell(f"tracking.{name} cannot be opened ({type(error).__name__}); the run goes on without it.")
            continue
        sent = max(int(earlier["sent"]), written) if earlier else 0
        known[name] = {"id": sink.run_id, "sent": sent}
        opened.append(Mirror(Guarded(name, sink, tell), after=sent))
    if _asked(config):
        try:
            write_atomically(file, json.dumps(known, indent=2) + "\n")
        except OSError as error:
            tell(f"{file} cannot be written ({error.strerror or error}): going on, trackers will see another run.")
    return opened


class Mirror:
    """A tracker that gets every step once.

    Args:
        sink: the tracker.
        after: the last step that it has.
    """

    def __init__(self, sink: Guarded, *, after: int) -> None:
        self._sink = sink
        self._after = after

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hand over a step, unless it was sent before."""
        if step > self._after:
            self._sink.log(values, step)

    def close(self) -> None:
        """Send what is left."""
        self._sink.close()


def _known(file: Path) -> dict[str, dict[str, Any]]:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        # Some trackers name a folder after the id.
        return {str(name): {"id": _plain(each["id"]), "sent": int(each["sent"])} for name, each in known.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        # The first time there is none; a damaged one costs a second run in the tracker.
        return {}


def _plain(name: str) -> str:
    if "/" in check_path(name):
        raise ValueError("an id is no path")
    return name


def _without_users(value: Any) -> Any:
    """The same without the name and password that an address may hold."""
    if isinstance(value, Mapping):
        return {key: _without_users(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_users(each) for each in value]
    return _USER.sub("://", value) if isinstance(value, str) else value


def _asked(config: TrackingConfig) -> list[tuple[str, BaseModel]]:
    found = ((name, getattr(config, name)) for name in _REMOTE)
    return [(name, settings) for name, settings in found if settings is not None]
