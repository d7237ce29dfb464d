"""The record of a labelling job: written once below `job/`, and compared by every later run with its own settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.config import LabelConfig, stored_config
from pipeline.corpus.plan import Plan
from pipeline.dataset.manifest import MANIFEST_NAME, ScorerEntry
from pipeline.job.plan_files import read_plan
from pipeline.job.purged import Key, read_purged
from pipeline.storage.base import Storage
from pipeline.storage.checked_json import from_checked
from scorers.errors import IncompleteError, UserError
from scorers.registry import ColumnName
from scorers.shell import phf
from scorers.stored import Count, JsonObject

JOB = "job/config.json"
LAYERS = "job/layers"


def _check_config(config: dict[str, Any]) -> dict[str, Any]:
    stored_config(config, ".")
    return config


class JobRecord(BaseModel):
    """The settings that a job was begun with.

    Attributes:
        version: format version of this record; 2 once documents were purged, so that versions of phf that would label
            them again refuse the job.
        config: the semantic configuration.
        scorers: by column, in the schema's order.
        sentences: fingerprint of the sentence splitter, whose boundaries may change between versions.
        purges: number of purges that were begun (`pipeline.job.purged`).
        purged: number of purges that are finished.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1, 2] = 1
    config: Annotated[JsonObject, AfterValidator(_check_config)]
    scorers: dict[ColumnName, ScorerEntry]
    sentences: str
    purges: Count = Field(default=0, exclude_if=lambda count: not count)
    purged: Count = Field(default=0, exclude_if=lambda count: not count)

    @property
    def is_purging(self) -> bool:
        """Whether a purge was begun and is not finished."""
        return self.purged < self.purges

    @property
    def thresholds(self) -> dict[str, str]:
        """The thresholds by column, as given by the user."""
        return dict(self.config["thresholds"])

    def with_inputs(self, inputs: Sequence[str]) -> "JobRecord":
        """The record with the inputs of the newest part of the plan, which may have been extended since."""
        return self.model_copy(update={"config": self.config | {"inputs": list(inputs)}})


class LayerRecord(BaseModel):
    """The columns that a layer after the first adds.

    Attributes:
        version: format version of this record.
        scorers: by column, in the schema's order.
        thresholds: by column, as given by the user.
        located: those of the columns that an earlier layer fills too, but without spans. This layer has scored them
            again, with spans; its scores, from the same scorer, take the place of the earlier ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    scorers: dict[ColumnName, ScorerEntry]
    thresholds: dict[ColumnName, str]
    located: list[ColumnName] = Field(default_factory=list, exclude_if=lambda located: not located)


def read_job(storage: Storage) -> JobRecord | None:
    """Read the job of an output folder; None if the folder is empty or does not exist.

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
            f"`{phf('repair', storage.uri)}` restores it from a sealed manifest if there is one; otherwise "
            f"choose another --output. What is wrong: {error}."
        ) from None
    names = storage.children()
    if names and names != ["job/"]:
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        raise UserError(
            f"{storage.uri} holds something other than a labelling job ({shown}). Choose an empty or new --output."
        )
    return None


def read_layers(storage: Storage) -> list[LayerRecord]:
    """Read the layers after the first, in order.

    Raises:
        UserError: this version cannot read one of them.
    """
    layers = []
    for name in storage.children(LAYERS):
        try:
            layers.append(from_checked(LayerRecord, storage.read(f"{LAYERS}/{name}")))
        except ValueError as error:
            raise UserError(
                f"{storage.uri}/{LAYERS}/{name} is damaged or was written by another version of phf. "
                f"`{phf('repair', storage.uri)}` restores it from a sealed manifest if there is one. "
                f"What is wrong: {error}."
            ) from None
    return layers


def layer_path(number: int) -> str:
    """Path of the record of a layer after the first."""
    return f"{LAYERS}/{number:04d}.json"


@dataclass(frozen=True)
class StoredJob:
    """A job as stored in an output folder: its record, its added layers, its plan, and the keys of purged records."""

    storage: Storage
    record: JobRecord
    layers: list[LayerRecord]
    plan: Plan
    purged: frozenset[Key] = frozenset()

    def columns(self, layers: Sequence[int]) -> dict[str, ScorerEntry]:
        """The scorers of some layers by column, in the order of the schema."""
        return {column: entry for number in layers for column, entry in self._scorers(number).items()}

    def config(self, layers: Sequence[int]) -> LabelConfig:
        """The configuration of a job that fills the columns of these layers."""
        thresholds = self.record.thresholds
        for number in layers[1:]:
            thresholds |= self.layers[number - 2].thresholds
        scorers = {column: entry.spec.model_dump(mode="json") for column, entry in self.columns(layers).items()}
        try:
            return stored_config(self.record.config | {"scorers": scorers, "thresholds": thresholds}, self.storage.uri)
        except ValueError as error:
            raise UserError(
                f"{self.storage.uri}/{LAYERS} is damaged: its columns are invalid ({error}). Restore it from a copy."
            ) from None

    def layers_of(self, columns: Mapping[str, ScorerEntry]) -> list[int]:
        """The layers whose columns are all in `columns` with the same scorers, in order; always begins with 1.

        Where `columns` has spans, a layer with the same scores and no spans counts too: a later one adds the spans.
        """
        wanted = [number for number in range(2, len(self.layers) + 2) if self._fills(number, columns)]
        return [1, *wanted]

    def _fills(self, layer: int, columns: Mapping[str, ScorerEntry]) -> bool:
        return all(
            (there := columns.get(column)) is not None and entry in (there, there.without_spans())
            for column, entry in self._scorers(layer).items()
        )

    def _scorers(self, layer: int) -> dict[str, ScorerEntry]:
        return self.record.scorers if layer == 1 else self.layers[layer - 2].scorers


def load_job(storage: Storage) -> StoredJob:
    """Load the job of an output folder, for commands that work on labelled units.

    Raises:
        UserError: there is no job, or its plan was never finished.
    """
    record = read_job(storage)
    stored = read_plan(storage)
    if record is None or stored is None:
        raise UserError(f"{storage.uri} holds no labelling job. Give the --output of a `phf label` run.")
    purged = read_purged(storage, record.purges)
    return StoredJob(storage, record.with_inputs(stored.inputs), read_layers(storage), stored.plan, purged)


def refuse_purging(storage: Storage, record: JobRecord) -> None:
    """Refuse to work on a dataset while a purge is not finished.

    Raises:
        IncompleteError: it is not.
    """
    if record.is_purging:
        raise IncompleteError(
            f"A purge of {storage.uri} was interrupted. Run `{phf('purge', storage.uri)}` to finish it first; it needs "
            "no ids."
        )


def refuse_changes(storage: Storage, begun: JobRecord, given: JobRecord) -> None:
    """Refuse to resume a job with another configuration or other scorers.

    Raises:
        UserError: something that can change the dataset differs; names each setting with its old and new value.
    """
    lines = [
        *_differences(begun.config, given.config),
        *(
            f"  scorer {column!r}: its fingerprint was {entry.fingerprint}, now {now.fingerprint}: its libraries, "
            "weights or code have changed"
            for column, entry in begun.scorers.items()
            if (now := given.scorers.get(column)) and now.fingerprint != entry.fingerprint and _same_options(entry, now)
        ),
    ]
    if begun.sentences != given.sentences:
        lines.append(
            f"  sentence splitter: its fingerprint was {begun.sentences}, now {given.sentences}: spaCy changed"
        )
    if not lines:
        return
    remedy = "Give the same settings to resume, or another --output to start over."
    if storage.exists(MANIFEST_NAME) and all(line.strip().startswith("thresholds") for line in lines):
        remedy = f"To change thresholds of a finished dataset: {phf('retag', storage.uri)} --threshold …"
    elif storage.exists(MANIFEST_NAME) and all(".spans: was not set" in line for line in lines):
        remedy = f"To add spans to a finished dataset: {phf('score', storage.uri)} --spans …"
    raise UserError(f"{storage.uri} was begun with other settings:\n" + "\n".join(lines) + f"\n{remedy}")


def refuse_other_inputs(
    storage: Storage,
    before: Mapping[str, object],
    now: Mapping[str, object],
    *,
    extend: bool = False,
    purged: bool = False,
) -> None:
    """Refuse to resume if the inputs are not those of the plan.

    Args:
        storage: the output.
        before: by URI, what must not change in an input.
        now: the same for the present inputs.
        extend: accept new inputs.
        purged: whether documents were purged from the output, so that they may have been removed from the inputs too.

    Raises:
        UserError: an input is new, gone or changed; names up to five of each.
    """
    new = [] if extend else _some("new", [uri for uri in now if uri not in before])
    lines = _some("gone", [uri for uri in before if uri not in now])
    lines += _some("changed", [uri for uri in now if uri in before and now[uri] != before[uri]])
    if new or lines:
        remedy = "Restore them to resume, or give another --output to start over."
        if not lines:
            remedy = "Add --extend to label the new ones too, or leave them out to resume without them."
        elif extend:
            remedy = "Restore them; --extend accepts new files only. Put records to add into a file of their own."
        if lines and purged:
            remedy += (
                " Documents were purged here: remove them from the inputs only once everything is labelled, because "
                "records are known by their positions. What is labelled needs no inputs."
            )
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
    return [f"  {path}: was {_format_value(before)}, now {_format_value(now)}"]


def _format_value(value: Any) -> str:
    return "not set" if value is None else repr(value)
