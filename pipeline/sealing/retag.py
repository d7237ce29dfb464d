"""Tag a sealed dataset anew with other thresholds: the same scores, a new generation, nothing scored again."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.dataset.manifest import Manifest
from pipeline.job.epoch import Epoch
from pipeline.job.record import load_job
from pipeline.job.staging import clear_staging
from pipeline.sealing.current import current_manifest
from pipeline.sealing.extent import EXTEND, LABEL, extent_of
from pipeline.sealing.generations import finish_seal, generations, read_generation, sealed_manifest
from pipeline.sealing.seal import Progress, seal
from pipeline.sealing.thresholds import threshold_specs
from pipeline.storage.open import open_storage
from scorers.errors import IncompleteError, UserError


@dataclass(frozen=True)
class Retagged:
    """The manifests before and after; the same one if the thresholds were these already."""

    before: Manifest
    after: Manifest

    @property
    def changed(self) -> bool:
        """Whether there is a new generation."""
        return self.before != self.after


def retag(uri: str, thresholds: Mapping[str, float | str], progress: Progress | None = None) -> Retagged:
    """Seal the next generation of a dataset with other thresholds.

    Needs the folders `units/` and `job/` of the labelling job. Until the manifest is swapped, readers of the old
    generation go on; after it the old generation is deleted, and they are told so.

    Args:
        uri: the dataset.
        thresholds: by column a number or a percentile; columns that are not named keep theirs.
        progress: is told of every unit.

    Raises:
        UserError: there is no sealed dataset, units that were planned since are not labelled, or a threshold is wrong
            or for a column that is not scored.
        IncompleteError: a committed unit is lost or damaged, or a disk or store failed.
        StoppedError: a newer run has claimed the dataset.
    """
    try:
        return _retag(uri, thresholds, progress)
    except NotADirectoryError:
        raise UserError(f"{uri} is no folder. Give the --output of a `phf label` run.") from None
    except OSError as error:
        raise IncompleteError(
            f"{uri} failed: {error.strerror or error}. The dataset is as it was, or finished by the same command again."
        ) from None


def _retag(uri: str, thresholds: Mapping[str, float | str], progress: Progress | None) -> Retagged:
    storage = open_storage(uri)
    current = current_manifest(storage)
    specs = _specs(current, thresholds)
    job = load_job(storage)
    if specs == _specs(current, {}) and sealed_manifest(storage) is not None:
        return Retagged(current, current)
    # What a run that died had committed counts as the current generation, even where its manifest was not swapped in.
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
            raise UserError(f"{storage.uri} is not labelled to its end: {step} Then tag it anew.")
    sealed = seal(
        epoch,
        config=job.config(layers),
        plan=job.plan,
        scorers=current.scorers,
        layers=layers,
        generation=current.generation + 1,
        thresholds=specs,
        known={column: each.value for column, each in current.thresholds.items() if specs[column] == each.spec},
        progress=progress,
    )
    clear_staging(epoch)
    return Retagged(current, sealed)


def _specs(current: Manifest, thresholds: Mapping[str, float | str]) -> dict[str, str]:
    kept = {column: each.spec for column, each in current.thresholds.items()}
    return threshold_specs(list(current.scorers), kept | dict(thresholds))
