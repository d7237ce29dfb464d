"""Commit generations of a dataset, and swap in the newest one; safe against a crash at any point.

The files of a generation are staged first. Its record (`generations/0001.json`, create-if-absent) is the commit point.
Then the files are moved into place, and the card and finally `manifest.json` are replaced: this is the swap that
readers see. Then older generations are deleted. `finish_seal` does everything after the record and is idempotent.
"""

from pydantic import BaseModel, ConfigDict

from pipeline.dataset.card import CARD_NAME, render_card
from pipeline.dataset.manifest import MANIFEST_NAME, DamagedError, File, Manifest
from pipeline.job.epoch import Epoch
from pipeline.storage.base import Storage
from pipeline.storage.checked_json import from_checked, to_checked
from pipeline.storage.failpoints import failpoint
from scorers.errors import IncompleteError, StoppedError
from scorers.paths import RelativePath
from scorers.shell import phf

GENERATIONS = "generations"


class GenerationRecord(BaseModel):
    """The commit record of a generation: its manifest, and the folder in which its files were staged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    staged: RelativePath
    manifest: Manifest


def generation_path(generation: int) -> str:
    """The path of a generation's record."""
    return f"{GENERATIONS}/{generation:04d}.json"


def data_folder(generation: int) -> str:
    """The folder of a generation's shards."""
    return f"data/{generation:04d}"


def ledger_folder(generation: int) -> str:
    """The folder of a generation's ledger."""
    return f"ledger/{generation:04d}"


def listed_files(manifest: Manifest) -> list[File]:
    """All files that a manifest lists: shards, then segments and quarantine of the ledger."""
    return [*manifest.shards, *manifest.ledger.segments, *manifest.ledger.quarantine]


def read_generation(storage: Storage, generation: int) -> GenerationRecord:
    """Read the record of a generation.

    Raises:
        FileNotFoundError: the generation is not committed.
        DamagedError: the record is invalid; the message names the defect.
    """
    path = generation_path(generation)
    try:
        return from_checked(GenerationRecord, storage.read(path))
    except ValueError as error:
        raise DamagedError(
            f"{storage.uri}/{path} is damaged: {error}. Run `{phf('repair', storage.uri)}` to write it again."
        ) from error


def generations(storage: Storage) -> list[int]:
    """The numbers of the committed generations that have not been deleted, the newest last."""
    stems = (name.removesuffix(".json") for name in storage.children(GENERATIONS) if name.endswith(".json"))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def commit_generation(epoch: Epoch, staged: str, manifest: Manifest) -> None:
    """Commit a generation whose files are all staged; `finish_seal` does the rest.

    Raises:
        StoppedError: a newer run has claimed the output, or another run has committed this generation differently.
    """
    failpoint("seal-staged")
    epoch.check()
    record = GenerationRecord(staged=staged, manifest=manifest)
    created = epoch.storage.put_if_absent(generation_path(manifest.generation), to_checked(record, indent=2))
    failpoint("generation-created")
    if created:
        return
    # The record may come from the first attempt of a retried request, or from an older driver that was faster.
    if read_generation(epoch.storage, manifest.generation).manifest != manifest:
        raise StoppedError(
            f"Another run has just sealed generation {manifest.generation} of {epoch.storage.uri}. Nothing is lost: "
            "run the same command again."
        )


def sealed_manifest(storage: Storage) -> Manifest | None:
    """The manifest of a sealed dataset if `finish_seal` has nothing left to do on it, otherwise None.

    Raises:
        DamagedError: the generation's record cannot be read.
    """
    committed = generations(storage)
    if len(committed) != 1 or not storage.exists(MANIFEST_NAME):
        return None
    manifest = read_generation(storage, committed[0]).manifest
    return manifest if storage.read(MANIFEST_NAME) == manifest.to_json().encode() else None


def finish_seal(epoch: Epoch) -> Manifest | None:
    """Make the newest committed generation the current one, finishing what a dead driver had begun.

    Also restores a `manifest.json` that was lost or changed.

    Returns:
        The manifest of the current generation; None if the dataset was never sealed.

    Raises:
        StoppedError: a newer run has claimed the output.
        IncompleteError: a file of the generation is lost.
        DamagedError: the generation's record cannot be read.
        OSError: the storage fails.
    """
    storage = epoch.storage
    committed = generations(storage)
    if not committed:
        return None
    record = read_generation(storage, committed[-1])
    manifest = record.manifest
    content = manifest.to_json().encode()
    if not storage.exists(MANIFEST_NAME) or storage.read(MANIFEST_NAME) != content:
        _move_files(epoch, record)
        epoch.check()
        storage.put(CARD_NAME, render_card(manifest).encode())
        failpoint("card-written")
        epoch.check()
        storage.put(MANIFEST_NAME, content)
        failpoint("manifest-written")
    for older in committed[:-1]:
        storage.delete_folder(data_folder(older))
        storage.delete_folder(ledger_folder(older))
        storage.delete(generation_path(older))
        failpoint("generation-deleted")
    return manifest


def _move_files(epoch: Epoch, record: GenerationRecord) -> None:
    epoch.check()
    for file in listed_files(record.manifest):
        try:
            epoch.storage.move(f"{record.staged}/{file.path}", file.path)
            failpoint("seal-moved")
        except FileNotFoundError:
            raise IncompleteError(
                f"{epoch.storage.uri} is damaged: generation {record.manifest.generation} is committed, but its file "
                f"{file.path} is missing. Run `{phf('repair', epoch.storage.uri)}` to write it again from the scored "
                "units."
            ) from None
