"""Report the progress of a job: committed units by column, what is sealed, and the commands that resume the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.dataset.manifest import MANIFEST_NAME, DamagedError, Manifest, ScorerEntry, parse_manifest
from pipeline.job.record import StoredJob, load_job
from pipeline.job.unit_store import UnitStore
from pipeline.sealing.current import is_complete, stored_columns
from pipeline.sealing.generations import generations, read_generation
from pipeline.storage.base import Storage
from scorers.errors import UserError

LABEL, EXTEND, SCORE, RETAG, PURGE = "phf label", "phf label --extend", "phf score", "phf retag", "phf purge"


@dataclass(frozen=True)
class Layer:
    """The columns that one command fills; `committed` units have scores in them."""

    number: int
    columns: tuple[str, ...]
    committed: int


@dataclass(frozen=True)
class UnfinishedStep:
    """A step that was begun and is not finished.

    Attributes:
        command: the command that resumes it, with its original arguments.
        what: the step, as a gerund.
        units: the number of units that each layer must have.
        layers: the layers that the step fills; none for a purge.
    """

    command: str
    what: str
    units: int
    layers: tuple[Layer, ...]

    @property
    def committed(self) -> int:
        """The number of committed units of the least complete layer."""
        return min((layer.committed for layer in self.layers), default=0)

    def __str__(self) -> str:
        if not self.layers:
            return f"{self.what} is not finished. `{self.command}` without ids finishes it."
        parts = [f"{', '.join(each.columns)}: {each.committed:,} of {self.units:,} units" for each in self.layers]
        return f"{self.what} is not finished ({'; '.join(parts)}). The same `{self.command}` command resumes it."


@dataclass(frozen=True)
class Extent:
    """The progress of a job.

    Attributes:
        units: the number of units of the plan.
        layers: all layers that hold, or may hold, columns of the dataset.
        current: the manifest that readers find; None before the first.
        sealed: numbers of the layers of the newest generation, swapped in or not; `(1,)` before there is any.
        unfinished: the unfinished steps, in the order to resume them.
    """

    units: int
    layers: tuple[Layer, ...]
    current: Manifest | None
    sealed: tuple[int, ...]
    unfinished: tuple[UnfinishedStep, ...]


def extent_of(job: StoredJob) -> Extent:
    """Read the progress of a job from its commit records.

    Damaged records count as missing; `phf verify` reports them.

    Raises:
        OSError: the storage fails.
    """
    storage, units = job.storage, len(job.plan.units)
    current = _current(storage)
    manifest = _newest(storage) or current
    sealed = [1] if manifest is None else job.layers_of(manifest.scorers)
    layers = {
        number: Layer(number, tuple(job.columns([number])), int(UnitStore(storage, number).committed(units).sum()))
        for number in range(1, len(job.layers) + 2)
        if number in sealed or manifest is None or _can_fill(job.columns([number]), manifest)
    }
    filled = tuple(layers[number] for number in sealed)
    steps = []
    if job.record.is_purging:
        steps.append(UnfinishedStep(PURGE, "Purging documents", units, ()))
    if (command := _command(job, manifest, current, filled)) is not None:
        what = {LABEL: "Labelling", EXTEND: "Labelling new inputs", SCORE: "Adding columns", RETAG: "Retagging"}
        steps.append(UnfinishedStep(command, what[command], units, filled))
    for number, layer in layers.items():
        if number not in sealed:
            steps.append(UnfinishedStep(SCORE, f"Adding {' and '.join(layer.columns)}", units, (layer,)))
    return Extent(units, tuple(layers.values()), current, tuple(sealed), tuple(steps))


def unfinished(storage: Storage) -> tuple[UnfinishedStep, ...]:
    """The unfinished steps at a dataset; empty if the dataset has no job, or a damaged one.

    Raises:
        OSError: the storage fails.
    """
    try:
        return extent_of(load_job(storage)).unfinished
    except UserError:
        return ()


def _newest(storage: Storage) -> Manifest | None:
    """The manifest of the newest committed generation; None if there is no readable one."""
    committed = generations(storage)
    try:
        return read_generation(storage, committed[-1]).manifest if committed else None
    except DamagedError:
        return None


def _can_fill(columns: Mapping[str, ScorerEntry], manifest: Manifest) -> bool:
    """Whether no column of a layer is taken by another scorer, and none is there already, spans included."""
    return all(
        (there := manifest.scorers.get(column)) is None or (entry.spans and entry.without_spans() == there)
        for column, entry in columns.items()
    )


def _current(storage: Storage) -> Manifest | None:
    try:
        return parse_manifest(storage.read(MANIFEST_NAME), MANIFEST_NAME)
    except (FileNotFoundError, UserError):
        return None


def _command(
    job: StoredJob, manifest: Manifest | None, current: Manifest | None, filled: Sequence[Layer]
) -> str | None:
    """The command that resumes work on the layers of the newest generation; None if it is complete and current."""
    if manifest is None:
        return LABEL
    if not is_complete(manifest, job, [layer.number for layer in filled]):
        return EXTEND
    if any(layer.committed < len(job.plan.units) for layer in filled):
        return LABEL
    if current is None:
        return None if job.storage.exists(MANIFEST_NAME) else LABEL  # a damaged manifest is not an unfinished step
    if current.generation >= manifest.generation:
        return None
    # The newest generation is committed, but not swapped in.
    if current.ledger.units != manifest.ledger.units:
        return EXTEND
    return SCORE if stored_columns(current.scorers) != stored_columns(manifest.scorers) else RETAG
