"""Open the trackers of a run: check them before any work, open them on rank 0, and reconnect them on a resume."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, TypeAdapter

from scorers.errors import UserError
from scorers.paths import check_path
from scorers.stored import read_stored
from training.config import TrackingConfig
from training.disk import write_atomically
from training.runs.folder import RunFolder
from training.runs.metrics_lines import format_metrics
from training.trackers.sink import Guarded, Opening, Sink, numbers
from training.trackers.tensorboard import TensorBoard

_FILE = "trackers.json"
_BOARD = "tensorboard"
_USER = re.compile(r"://[^/@\s]+@")
# Class names of remote trackers. The key is the name of the module here, the setting, the package and the extra.
_REMOTE = {"wandb": "Wandb", "mlflow": "Mlflow", "trackio": "Trackio"}
_WANDB_SETTINGS = (Path("wandb", "settings"), Path(".wandb", "settings"))


def check_trackers(config: TrackingConfig) -> None:
    """Refuse a tracker that is not installed, or that would read settings from the working directory.

    Raises:
        UserError: names the extra or the file.
    """
    for name, _ in _configured(config):
        if find_spec(name) is None:
            raise UserError(f"tracking.{name} needs the package {name}: pip install 'phf[{name}]'.")
    for file in _WANDB_SETTINGS if config.wandb is not None else ():
        # Such a file may belong to somebody else, and name a server or a proxy that would receive the API key.
        if file.exists():
            raise UserError(
                f"W&B would read settings from {file} in the working directory. Set variables such as WANDB_PROJECT "
                "instead, or start the command in another folder."
            )


class Mirrors:
    """The open trackers of a run, which mirror the lines of `metrics.jsonl`, and the record of what each has received.

    Args:
        file: the record, in the folder of the run.
        known: for each tracker, its id of the run and the lines that it has; entries of trackers that are not open are
            kept.
        opened: the open trackers.
        lines: lines that they have, or are being sent.
        warn: called with each warning.
    """

    def __init__(
        self,
        file: Path,
        known: dict[str, dict[str, Any]],
        opened: Mapping[str, Guarded],
        lines: Sequence[Mapping[str, Any]],
        warn: Callable[[str], None],
    ) -> None:
        self._file = file
        self._known = known
        self._opened = opened
        self._warn = warn
        self._count, self._digest = len(lines), _digest(lines)
        # Until the trackers are closed, it is not known what has arrived.
        self._write()

    def log(self, line: Mapping[str, Any]) -> None:
        """Queue a line of `metrics.jsonl` for each tracker; never raises or blocks."""
        self._count += 1
        self._digest.update(format_metrics(line).encode())
        for each in self._opened.values():
            each.log(numbers(line), int(line["step"]))

    def close(self) -> None:
        """Send remaining lines, close the trackers, and record what they have."""
        for name, each in self._opened.items():
            if each.close():
                self._known[name] |= {"lines": self._count, "sha256": self._digest.hexdigest()}
        self._write()

    def _write(self) -> None:
        if not self._opened:
            return
        try:
            write_atomically(self._file, json.dumps(self._known, indent=2) + "\n")
        except OSError as error:
            problem = error.strerror or error
            self._warn(f"{self._file} cannot be written ({problem}): a resume will be another run in the trackers.")


def open_trackers(
    config: TrackingConfig,
    folder: RunFolder,
    lines: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    warn: Callable[[str], None],
) -> Mirrors:
    """Open the configured trackers, each continuing its earlier run, and send the lines that it lacks.

    A tracker that may have more than these lines, because the run resumes from an earlier step or was killed, goes back
    to them if it can, or else starts a new run with all of them. A tracker that cannot be opened is left out, with a
    warning.

    Args:
        config: the settings of the trackers.
        folder: the folder of the run.
        lines: the lines of `metrics.jsonl`, which every tracker shall show.
        facts: settings and facts to show with the run.
        warn: called with each warning.
    """
    file = folder.path / _FILE
    known = _known(file)
    opened: dict[str, Guarded] = {}
    for name, settings in [*([(_BOARD, None)] if config.tensorboard else []), *_configured(config)]:
        earlier = known.get(name, {})
        has = _common(earlier, lines)
        opening = Opening(
            str(folder.path),
            folder.path.resolve().name,
            _without_users(facts),
            earlier.get("id"),
            goes_back=bool(earlier) and has is None,
            step=max((int(line["step"]) for line in lines), default=0),
        )
        shown = "TensorBoard" if name == _BOARD else f"tracking.{name}"
        try:
            sink = _open(name, settings, opening)
        except Exception as error:  # noqa: BLE001 - a tracker must not end a run
            reason = getattr(error, "strerror", None) if name == _BOARD else None
            warn(f"{shown} cannot be opened ({reason or type(error).__name__}); the run continues without it.")
            continue
        known[name] = {"id": sink.run_id}
        # A tracker that could go back has all of these lines.
        sent = (len(lines) if has is None else has) if sink.continues else 0
        opened[name] = Guarded("TensorBoard" if name == _BOARD else name, sink, warn, backlog=lines[sent:])
    return Mirrors(file, known, opened, lines, warn)


def _open(name: str, settings: BaseModel | None, opening: Opening) -> Sink:
    if name == _BOARD:
        continues = opening.run_id is not None and not opening.goes_back
        return TensorBoard(Path(opening.folder) / _BOARD, opening.step if continues else 0, continues=continues)
    sink: Sink = getattr(import_module(f"training.trackers.{name}"), _REMOTE[name])(settings, opening)
    return sink


def _common(earlier: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> int | None:
    """How many of the lines a tracker has, if it has no others; None if it may have others."""
    count: int = earlier.get("lines", -1)
    if not 0 <= count <= len(lines) or _digest(lines[:count]).hexdigest() != earlier.get("sha256"):
        return None
    return count


def _digest(lines: Sequence[Mapping[str, Any]]) -> Any:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(format_metrics(line).encode())
    return digest


def _known(file: Path) -> dict[str, dict[str, Any]]:
    try:
        return {name: each.model_dump() for name, each in _KNOWN.validate_json(read_stored(file)).items()}
    except (OSError, ValueError):
        # There is none at first; a damaged one only costs a second run in the tracker.
        return {}


def _plain(name: str) -> str:
    if "/" in check_path(name):
        raise ValueError("an id must not be a path")
    return name


class _Known(BaseModel):
    """A tracker's id of the run, which may name a folder, and the lines that it is known to have."""

    id: Annotated[str, AfterValidator(_plain)]
    lines: int = -1
    sha256: str | None = None


_KNOWN = TypeAdapter(dict[str, _Known])


def _without_users(value: Any) -> Any:
    """The value without user names and passwords in URLs."""
    if isinstance(value, Mapping):
        return {key: _without_users(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_users(each) for each in value]
    return _USER.sub("://", value) if isinstance(value, str) else value


def _configured(config: TrackingConfig) -> list[tuple[str, BaseModel]]:
    found = ((name, getattr(config, name)) for name in _REMOTE)
    return [(name, settings) for name, settings in found if settings is not None]
