"""How far a job is: which units of which columns are committed, what of them is sealed, and which command goes on."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.dataset.manifest import MANIFEST_NAME, DamagedError, Manifest, parse_manifest
from pipeline.job.record import StoredJob, load_job
from pipeline.job.units import UnitStore
from pipeline.sealing.current import holds_all
from pipeline.sealing.generations import generations, read_generation
from pipeline.storage.base import Storage
from scorers.errors import UserError

LABEL, EXTEND, SCORE, RETAG = "phf label", "phf label --extend", "phf score", "phf retag"


@dataclass(frozen=True)
class Layer:
    """What one command scores: `committed` units have scores in `columns`."""

    number: int
    columns: tuple[str, ...]
    committed: int


@dataclass(frozen=True)
class Begun:
    """Something that was begun and is not done.

    Attributes:
        command: goes on with it, when it is given as it was.
        what: it is.
        units: that each of the layers must have.
        layers: that it fills.
    """

    command: str
    what: str
    units: int
    layers: tuple[Layer, ...]

    @property
    def committed(self) -> int:
        """Units that are committed in all of its layers, at most."""
        return min(layer.committed for layer in self.layers)

    def __str__(self) -> str:
        parts = [f"{', '.join(each.columns)}: {each.committed:,} of {self.units:,} units" for each in self.layers]
        return f"{self.what} was begun and is not done ({'; '.join(parts)}). The same `{self.command}` command goes on."


@dataclass(frozen=True)
class Extent:
    """How far a job is.

    Attributes:
        units: of the plan.
        layers: all that hold columns of the dataset, or may.
        current: the manifest that readers find; None before the first.
        sealed: numbers of the layers of the newest generation, swapped in or not; the first before there is any.
        unfinished: what was begun and is not done, in the order in which it goes on.
    """

    units: int
    layers: tuple[Layer, ...]
    current: Manifest | None
    sealed: tuple[int, ...]
    unfinished: tuple[Begun, ...]


def extent_of(job: StoredJob) -> Extent:
    """Read how far a job is; commit records prove it.

    What is damaged is left to `phf verify`: it counts as not there.

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
        if number in sealed or manifest is None or not manifest.scorers.keys() & job.columns([number]).keys()
    }
    filled = tuple(layers[number] for number in sealed)
    steps = []
    if (command := _command(job, manifest, current, filled)) is not None:
        what = {LABEL: "Labelling", EXTEND: "Labelling new inputs", SCORE: "Adding columns", RETAG: "Tagging anew"}
        steps.append(Begun(command, what[command], units, filled))
    for number, layer in layers.items():
        if number not in sealed:
            steps.append(Begun(SCORE, f"Adding {' and '.join(layer.columns)}", units, (layer,)))
    return Extent(units, tuple(layers.values()), current, tuple(sealed), tuple(steps))


def unfinished(storage: Storage) -> tuple[Begun, ...]:
    """What was begun at a dataset and is not done; nothing where its job is not beside it, or is damaged.

    Raises:
        OSError: the storage fails.
    """
    try:
        return extent_of(load_job(storage)).unfinished
    except UserError:
        return ()


def _newest(storage: Storage) -> Manifest | None:
    """The manifest of the newest committed generation; None where there is none that can be read."""
    committed = generations(storage)
    try:
        return read_generation(storage, committed[-1]).manifest if committed else None
    except DamagedError:
        return None


def _current(storage: Storage) -> Manifest | None:
    try:
        return parse_manifest(storage.read(MANIFEST_NAME), MANIFEST_NAME)
    except (FileNotFoundError, UserError):
        return None


def _command(
    job: StoredJob, manifest: Manifest | None, current: Manifest | None, filled: Sequence[Layer]
) -> str | None:
    """The command that goes on with the layers of the newest generation; None where it holds all and is current."""
    if manifest is None:
        return LABEL
    if not holds_all(manifest, job, [layer.number for layer in filled]):
        return EXTEND
    if any(layer.committed < len(job.plan.units) for layer in filled):
        return LABEL
    if current is None:
        return None if job.storage.exists(MANIFEST_NAME) else LABEL  # what is damaged is no step that goes on
    if current.generation >= manifest.generation:
        return None
    # The newest is committed, but not swapped in.
    if current.ledger.units != manifest.ledger.units:
        return EXTEND
    return SCORE if list(current.scorers) != list(manifest.scorers) else RETAG
