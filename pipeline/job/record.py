"""What a labelling job is: written once below `job/`, compared by every later run with what it was asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

from pipeline.config import LabelConfig, stored_config
from pipeline.corpus.plan import Plan
from pipeline.dataset.manifest import MANIFEST_NAME, ScorerEntry
from pipeline.job.plan_files import read_plan
from pipeline.storage.base import Storage
from pipeline.storage.checked_json import from_checked
from scorers.errors import UserError
from scorers.registry import ColumnName
from scorers.shell import phf
from scorers.stored import JsonObject

JOB = "job/config.json"
LAYERS = "job/layers"


def _check_config(config: dict[str, Any]) -> dict[str, Any]:
    stored_config(config, ".")
    return config


class JobRecord(BaseModel):
    """What a job was begun with.

    Attributes:
        version: of this record.
        config: the semantic configuration.
        scorers: by column, in the schema's order.
        sentences: fingerprint of the splitter; another version of it may move boundaries.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    config: Annotated[JsonObject, AfterValidator(_check_config)]
    scorers: dict[ColumnName, ScorerEntry]
    sentences: str


class LayerRecord(BaseModel):
    """What a layer after the first adds.

    Attributes:
        version: of this record.
        scorers: by column, in the schema's order.
        thresholds: by column, as they were asked for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    scorers: dict[ColumnName, ScorerEntry]
    thresholds: dict[ColumnName, str]


def read_job(storage: Storage) -> JobRecord | None:
    """The job that an output folder holds, or None if the folder is empty or does not exist.

    Raises:
        UserError: the folder holds something else, or a job that this version cannot read.
    """
    try:
        return from_checked(JobRecord, storage.read(JOB))
    except FileNotFoundError:
        pass
    except ValueError as error:
        raise UserError(
            f"{storage.uri}/{JOB} is damaged or was written by another version of phf. "
            f"`{phf('repair', storage.uri)}` mends it where a sealed manifest says the same; otherwise "
            f"choose another --output. What is wrong: {error}."
        ) from None
    names = storage.children()
    if names and names != ["job/"]:
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        raise UserError(
            f"{storage.uri} holds something else than a labelling job ({shown}). Choose an empty or new --output."
        )
    return None


def read_layers(storage: Storage) -> list[LayerRecord]:
    """The layers after the first, in order.

    Raises:
        UserError: one cannot be read by this version.
    """
    layers = []
    for name in storage.children(LAYERS):
        try:
            layers.append(from_checked(LayerRecord, storage.read(f"{LAYERS}/{name}")))
        except ValueError as error:
            raise UserError(
                f"{storage.uri}/{LAYERS}/{name} is damaged or was written by another version of phf. "
                f"`{phf('repair', storage.uri)}` mends it where a sealed manifest says the same. "
                f"What is wrong: {error}."
            ) from None
    return layers


def layer_path(number: int) -> str:
    """Path of the record of a layer after the first."""
    return f"{LAYERS}/{number:04d}.json"


@dataclass(frozen=True)
class StoredJob:
    """All that an output folder says of its job: what it was begun with, what was added, and its plan."""

    storage: Storage
    record: JobRecord
    layers: list[LayerRecord]
    plan: Plan

    def columns(self, layers: Sequence[int]) -> dict[str, ScorerEntry]:
        """The scorers of some layers by column, in the order of the schema."""
        return {column: entry for number in layers for column, entry in self._scorers(number).items()}

    def config(self, layers: Sequence[int]) -> LabelConfig:
        """The configuration of a job that had filled the columns of these layers from the first."""
        thresholds = dict(self.record.config["thresholds"])
        for number in layers[1:]:
            thresholds |= self.layers[number - 2].thresholds
        scorers = {column: {"kind": entry.kind, **entry.options} for column, entry in self.columns(layers).items()}
        try:
            return stored_config(self.record.config | {"scorers": scorers, "thresholds": thresholds}, self.storage.uri)
        except ValueError as error:
            raise UserError(
                f"{self.storage.uri}/{LAYERS} is damaged: no job has such columns ({error}). Restore it from a copy."
            ) from None

    def layers_of(self, columns: Mapping[str, ScorerEntry]) -> list[int]:
        """The layers that fill the given columns by the given scorers, in order."""
        wanted = [number for number in range(2, len(self.layers) + 2) if self._fills(number, columns)]
        return [1, *wanted]

    def _fills(self, layer: int, columns: Mapping[str, ScorerEntry]) -> bool:
        return all(columns.get(column) == entry for column, entry in self._scorers(layer).items())

    def _scorers(self, layer: int) -> dict[str, ScorerEntry]:
        return self.record.scorers if layer == 1 else self.layers[layer - 2].scorers


def load_job(storage: Storage) -> StoredJob:
    """The job of an output folder, for commands that work on what was labelled.

    Raises:
        UserError: there is no job, or its plan was never finished.
    """
    record = read_job(storage)
    stored = read_plan(storage)
    if record is None or stored is None:
        raise UserError(f"{storage.uri} holds no labelling job. Give the --output of a `phf label` run.")
    record = record.model_copy(update={"config": record.config | {"inputs": stored.inputs}})
    return StoredJob(storage, record, read_layers(storage), stored.plan)


def refuse_changes(storage: Storage, begun: JobRecord, asked: JobRecord) -> None:
    """Refuse to go on with a job under another configuration or with other scorers.

    Raises:
        UserError: something that can change the dataset differs; names each setting, before and now.
    """
    lines = [
        *_differences(begun.config, asked.config),
        *(
            f"  scorer {column!r}: its fingerprint was {entry.fingerprint}, now {now.fingerprint}: its libraries, "
            "weights or code have changed"
            for column, entry in begun.scorers.items()
            if (now := asked.scorers.get(column)) and now.fingerprint != entry.fingerprint and _same_options(entry, now)
        ),
    ]
    if begun.sentences != asked.sentences:
        lines.append(
            f"  sentence splitter: its fingerprint was {begun.sentences}, now {asked.sentences}: spaCy changed"
        )
    if not lines:
        return
    remedy = "Give the same settings to go on, or another --output to begin anew."
    if storage.exists(MANIFEST_NAME) and all(line.strip().startswith("thresholds") for line in lines):
        remedy = f"To change thresholds of a finished dataset: {phf('retag', storage.uri)} --threshold …"
    raise UserError(f"{storage.uri} was begun with other settings:\n" + "\n".join(lines) + f"\n{remedy}")


def refuse_other_inputs(
    storage: Storage, before: Mapping[str, object], now: Mapping[str, object], *, extend: bool = False
) -> None:
    """Refuse to go on when the inputs are not those of the plan.

    Args:
        storage: the output.
        before: by URI, whatever of an input must not change.
        now: the same of the inputs that there are now.
        extend: let new ones pass.

    Raises:
        UserError: an input is new, gone or changed; names up to five of each.
    """
    new = [] if extend else _some("new", [uri for uri in now if uri not in before])
    lines = _some("gone", [uri for uri in before if uri not in now])
    lines += _some("changed", [uri for uri in now if uri in before and now[uri] != before[uri]])
    if new or lines:
        remedy = "Restore them to go on, or give another --output to begin anew."
        if not lines:
            remedy = "Add --extend to label the new ones too, or leave them out to go on without."
        elif extend:
            remedy = "Restore them; --extend takes new files only. What a file has gained must be a file of its own."
        raise UserError(
            f"The inputs are not those that {storage.uri} was begun with:\n" + "\n".join([*new, *lines, remedy])
        )


def _some(what: str, names: Sequence[str]) -> list[str]:
    more = [f"  … and {len(names) - 5} more"] if len(names) > 5 else []
    return [f"  {what}: {name}" for name in names[:5]] + more


def _same_options(entry: ScorerEntry, now: ScorerEntry) -> bool:
    return (entry.kind, entry.options) == (now.kind, now.options)


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    if before == now:
        return []
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return [
            line
            for key in sorted({*before, *now})
            for line in _differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
        ]
    return [f"  {path}: was {_shown(before)}, now {_shown(now)}"]


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)
