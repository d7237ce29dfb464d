"""Retag a sealed dataset with other thresholds: a new generation with the same scores; nothing is scored again."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.dataset.manifest import Manifest
from pipeline.job.epoch import Epoch
from pipeline.job.record import load_job, refuse_purging
from pipeline.job.staging import clear_staging
from pipeline.sealing.current import current_manifest
from pipeline.sealing.extent import EXTEND, LABEL, extent_of
from pipeline.sealing.generations import finish_seal, generations, read_generation, sealed_manifest
from pipeline.sealing.seal import Contents, Progress, seal
from pipeline.sealing.thresholds import threshold_specs
from pipeline.storage.open import open_storage
from scorers.errors import IncompleteError, UserError


@dataclass(frozen=True)
class Retagged:
    """The manifests before and after; equal if the thresholds did not change."""

    before: Manifest
    after: Manifest

    @property
    def changed(self) -> bool:
        """Whether there is a new generation."""
        return self.before != self.after


def retag(uri: str, thresholds: Mapping[str, float | str], progress: Progress | None = None) -> Retagged:
    """Seal the next generation of a dataset with other thresholds.

    Needs the folders `units/` and `job/` of the labelling job. Readers of the old generation are undisturbed until the
    manifest is swapped; then the old generation is deleted, and they get an error that says so.

    Args:
        uri: the dataset.
        thresholds: by column a number or a percentile; other columns keep theirs.
        progress: called after every unit.

    Raises:
        UserError: there is no sealed dataset, units that were added since are not labelled, or a threshold is invalid
            or for a column that is not scored.
        IncompleteError: a committed unit is lost or damaged, or a disk or store failed.
        StoppedError: a newer run has claimed the dataset.
    """
    try:
        return _retag(uri, thresholds, progress)
    except NotADirectoryError:
        raise UserError(f"{uri} is not a folder. Give the --output of a `phf label` run.") from None
    except OSError as error:
        raise IncompleteError(
            f"{uri} failed: {error.strerror or error}. Run the same command again; the dataset stays usable until then."
        ) from None


def _retag(uri: str, thresholds: Mapping[str, float | str], progress: Progress | None) -> Retagged:
    storage = open_storage(uri)
    current = current_manifest(storage)
    specs = _specs(current, thresholds)
    job = load_job(storage)
    refuse_purging(storage, job.record)
    if specs == _specs(current, {}) and sealed_manifest(storage) is not None:
        return Retagged(current, current)
    # A generation that a dead run had committed counts as current, even if its manifest was not swapped in.
    before = read_generation(storage, generations(storage)[0]).manifest
    epoch = Epoch.claim(storage)
    current = finish_seal(epoch) or current
    specs = _specs(current, thresholds)
    if specs == _specs(current, {}):
        clear_staging(epoch)
        return Retagged(before, current)
    layers = job.layers_of(current.scorers)
    for step in extent_of(job).unfinished:
        if step.command in (LABEL, EXTEND):
            raise UserError(f"{storage.uri} is not completely labelled: {step} Then retag it.")
    sealed = seal(
        epoch,
        Contents(job.config(layers), job.plan, current.scorers, layers, specs, job.purged),
        generation=current.generation + 1,
        known={column: each.value for column, each in current.thresholds.items() if specs[column] == each.spec},
        progress=progress,
    )
    clear_staging(epoch)
    return Retagged(current, sealed)


def _specs(current: Manifest, thresholds: Mapping[str, float | str]) -> dict[str, str]:
    kept = {column: each.spec for column, each in current.thresholds.items()}
    return threshold_specs(list(current.scorers), kept | dict(thresholds))
