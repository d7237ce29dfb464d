"""Find the current generation of a dataset, and seal a new one if it lacks units or columns."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.corpus.plan import Plan, Units
from pipeline.dataset.manifest import Manifest, ScorerEntry, no_manifest
from pipeline.job.epoch import Epoch
from pipeline.job.record import StoredJob
from pipeline.sealing.generations import finish_seal, generations, read_generation
from pipeline.sealing.seal import Contents, Progress, contents_of, seal
from pipeline.storage.base import Storage
from scorers.errors import UserError


def current_manifest(storage: Storage) -> Manifest:
    """The manifest of the newest committed generation of a dataset that still has its scored units.

    Raises:
        UserError: there is no such dataset.
        DamagedError: the generation's record cannot be read.
        OSError: the storage fails, or a folder of it is a link.
    """
    committed = generations(storage)
    if committed:
        return read_generation(storage, committed[-1]).manifest
    # A folder that is a link would be missing from `children`.
    storage.refuse_links()
    found = storage.children()
    if "data/" in found:
        raise UserError(
            f"{storage.uri} is a copy without its scored units (units/, job/, generations/), which this command needs. "
            "Give the --output of the `phf label` run."
        )
    raise no_manifest(storage.uri, found)


def is_complete(manifest: Manifest, job: StoredJob, layers: Sequence[int]) -> bool:
    """Whether a generation has all units of the plan and all columns of the layers."""
    return (
        manifest.ledger.units == len(job.plan.units)
        and manifest.sources == job.plan.entries
        and stored_columns(manifest.scorers) == stored_columns(job.columns(layers))
    )


def stored_columns(scorers: Mapping[str, ScorerEntry]) -> list[tuple[str, bool]]:
    """The score columns, in order, and whether each has spans."""
    return [(column, entry.spans) for column, entry in scorers.items()]


def contents_as_sealed(job: StoredJob, sealed: Manifest) -> Contents:
    """The units, columns and threshold specifications of a generation, though the job may have been extended since."""
    kept = {column: each.spec for column, each in sealed.thresholds.items()}
    contents = contents_of(job, job.layers_of(sealed.scorers), kept)
    config = contents.config.model_copy(update={"inputs": sealed.config["inputs"]})
    return replace(contents, config=config, plan=_first_of(job.plan, sealed))


def _first_of(plan: Plan, sealed: Manifest) -> Plan:
    """The part of a plan that a dataset was sealed with; the plan may have been extended since."""
    units, sources = sealed.ledger.units, len(sealed.sources)
    if (units, sources) == (len(plan.units), len(plan.sources)):
        return plan
    first = plan.units.first[: units + 1]
    uris = {source.uri for source in plan.sources[:sources]}
    return Plan(
        plan.sources[:sources],
        plan.entries[:sources],
        Units(first, plan.units.slices[: first[-1]]),
        [each for each in plan.cut if each.source in uris],
        sealed.left_out,
    )


def seal_current(epoch: Epoch, job: StoredJob, layers: Sequence[int], progress: Progress | None = None) -> Manifest:
    """Finish the seal that a dead driver had begun; seal a new generation if units or columns were added since.

    A new generation keeps the thresholds of the last one.

    Args:
        epoch: this driver's claim to the output.
        job: the stored job; all its units are committed in the layers.
        layers: the layers whose columns the dataset has, in order.
        progress: called after every unit.

    Raises:
        UserError, IncompleteError, StoppedError, OSError: see `seal`.
    """
    current = finish_seal(epoch)
    if current is not None and is_complete(current, job, layers):
        return current
    kept = {} if current is None else {column: each.spec for column, each in current.thresholds.items()}
    generation = 1 if current is None else current.generation + 1
    return seal(epoch, contents_of(job, layers, kept), generation=generation, progress=progress)
