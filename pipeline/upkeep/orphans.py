"""Find the files in the output of a labelling job that nothing committed needs any more."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pipeline.checking.files import compare_bytes
from pipeline.dataset.manifest import MANIFEST_NAME, DamagedError, Manifest, parse_manifest
from pipeline.job.epoch import STAGING
from pipeline.job.plan_files import PLANS, plan_files
from pipeline.job.record import StoredJob, load_job
from pipeline.job.unit_folders import FolderSurvey, PathOutside, survey_folder
from pipeline.job.unit_records import PartFile
from pipeline.job.unit_store import UnitStore, layer_numbers
from pipeline.sealing.generations import (
    GenerationRecord,
    data_folder,
    generation_path,
    generations,
    ledger_folder,
    listed_files,
    read_generation,
)
from pipeline.storage.base import FileInfo, Storage
from scorers.errors import UserError
from scorers.shell import phf

# Writing a file takes moments; an unfinished file older than this was left by a process that died.
_UNFINISHED_S = 3600.0


@dataclass(frozen=True)
class Orphan:
    """An unneeded file, or folder with all its content (its path ends in `/`), and the reason; size in bytes."""

    path: str
    files: int
    size: int
    why: str


@dataclass
class Remains:
    """The result of a search.

    Attributes:
        orphans: files that may be removed.
        irregular: paths that are neither file nor folder, such as links, and what to do about them.
        unmoved: parts of committed units that are still staged.
        unswapped: whether a committed generation has not been swapped in yet.
        kept: files below `staging/` that something committed needs.
    """

    orphans: list[Orphan] = field(default_factory=list)
    irregular: list[tuple[str, str]] = field(default_factory=list)
    unmoved: list[PartFile] = field(default_factory=list)
    unswapped: bool = False
    kept: set[str] = field(default_factory=set)


def find_remains(storage: Storage, *, before_epoch: int | None = None) -> Remains:
    """Search the whole output without changing it.

    If the record of a unit is damaged, all files that it might name are kept. With `before_epoch`, only the staging
    folders of older epochs are searched.

    Raises:
        DamagedError: the record of the newest generation is damaged, so that the files it needs are unknown; or the
            record of a unit names a file outside the output.
        OSError: the storage fails.
    """
    return _Search(storage, before_epoch).run()


class _Search:
    def __init__(self, storage: Storage, before_epoch: int | None) -> None:
        self._storage = storage
        self._before_epoch = before_epoch
        self._found = Remains()
        self._beyond: list[FileInfo] = []
        self._staged = {info.path: info.size for info in storage.list(STAGING)}

    def run(self) -> Remains:
        sealed = self._sealed()
        job = self._job()
        for layer in self._layers():
            self._search_layer(UnitStore(self._storage, layer), job, sealed)
        unnamed = self._unnamed_plan_files()
        if not (unnamed and self._beyond):
            # Both together remain of an extension whose plan was lost; `phf repair` may restore it.
            for info in unnamed:
                self._add([info], "no plan names it")
            for info in self._beyond:
                self._add([info], "belongs to no unit of the plan")
        self._search_staging()
        for info in self._storage.unfinished(_UNFINISHED_S):
            self._add([info], "left by a process that died while writing")
        self._found.irregular = list(self._storage.irregular())
        return self._found

    def _job(self) -> StoredJob | None:
        try:
            return load_job(self._storage)
        except UserError:
            return None

    def _sealed(self) -> Manifest | None:
        """Return the manifest of the current generation; find the files of other generations."""
        committed = generations(self._storage)
        current = self._current()
        record = read_generation(self._storage, committed[-1]) if committed else None
        if record is not None and current != record.manifest:
            self._found.unswapped = True
            self._keep_generation(record)
            # Skip what the swap itself will delete; readers may still use it.
            known = [record.manifest] + ([current] if current is not None else [])
            self._search_generations(known, skipped=set(committed) - {each.generation for each in known})
            return record.manifest
        if current is not None:
            self._search_generations([current], skipped=set())
            for older in committed[:-1]:
                path = generation_path(older)
                size = self._storage.size(path) or 0
                self._add([FileInfo(path, size)], "record of a generation that is not the current one")
        return current

    def _current(self) -> Manifest | None:
        try:
            return parse_manifest(self._storage.read(MANIFEST_NAME), MANIFEST_NAME)
        except (FileNotFoundError, UserError):
            return None

    def _keep_generation(self, record: GenerationRecord) -> None:
        self._found.kept |= {f"{record.staged}/{file.path}" for file in listed_files(record.manifest)}

    def _search_generations(self, known: Sequence[Manifest], skipped: Collection[int]) -> None:
        """Find files below `data/` and `ledger/` of other generations than the known and the skipped ones."""
        listed = {file.path for manifest in known for file in listed_files(manifest)}
        folders = {place(generation) for generation in skipped for place in (data_folder, ledger_folder)}
        for folder in ("data", "ledger"):
            self._search_folder(folder, listed, folders)

    def _search_folder(self, folder: str, listed: set[str], skipped: set[str]) -> None:
        for name in self._storage.children(folder):
            if f"{folder}/{name}".removesuffix("/") in skipped:
                continue
            files = list(self._storage.list(f"{folder}/{name}")) if name.endswith("/") else []
            if name.endswith("/") and not files:
                continue  # an empty folder
            if name.endswith("/") and not any(info.path in listed for info in files):
                self._add(files, "of a generation that is not the current one", folder=f"{folder}/{name}")
                continue
            if not name.endswith("/"):
                files = [FileInfo(f"{folder}/{name}", self._storage.size(f"{folder}/{name}") or 0)]
            for info in files:
                if info.path not in listed:
                    self._add([info], f"{MANIFEST_NAME} does not list it")

    def _layers(self) -> list[int]:
        return layer_numbers(self._storage)

    def _search_layer(self, store: UnitStore, job: StoredJob | None, sealed: Manifest | None) -> None:
        folders = {
            int(name[:5])
            for name in self._storage.children(store.folder)
            if name[:5].isdecimal() and name[5:] in {"/", ".parquet"}
        }
        # Sealed units belong to the plan, even if parts of the plan are lost.
        units = None if job is None else max(len(job.plan.units), sealed.ledger.units if sealed is not None else 0)
        for folder in sorted(folders):
            survey = survey_folder(store, folder)
            for number, what in survey.damaged.items():
                if isinstance(what, PathOutside):
                    uri = self._storage.uri
                    raise DamagedError(
                        f"{uri}/{store.record_path(number)} {what}. Nothing was removed. "
                        f"Run `{phf('repair', uri)}` to label the unit again."
                    )
            self._find_unmoved(survey)
            prefix = f"{store.folder}/{folder:05d}/"
            named = {part.path for record in survey.records.values() for part in record.parts}
            for name, size in survey.files.items():
                unit = int(name[:8]) if name[:8].isdecimal() and name[8:9] == "." else None
                is_committed = name[8:] == ".json" or prefix + name in named or unit in survey.unknown
                if unit is not None and units is not None and unit >= units and is_committed:
                    self._beyond.append(FileInfo(prefix + name, size))
                elif prefix + name not in named and unit is not None and name.endswith(".parquet"):
                    # Keep the parts of a unit whose record is damaged or lost: `phf repair` may need them.
                    is_known = job is None or store.layer <= len(job.layers) + 1 or bool(survey.records)
                    is_lost = is_known and sealed is not None and unit < sealed.ledger.units
                    if unit not in survey.unknown and (unit in survey.records or not is_lost):
                        self._add([FileInfo(prefix + name, size)], "no commit record names it")

    def _find_unmoved(self, survey: FolderSurvey) -> None:
        for record in survey.records.values():
            for part in record.parts:
                if part.staged in self._staged and self._is_needed(part):
                    self._found.unmoved.append(part)
                    self._found.kept.add(part.staged)
        names = {f"{unit:08d}" for unit in survey.unknown}
        self._found.kept |= {path for path in self._staged if path.rpartition("/")[2][:8] in names}

    def _is_needed(self, part: PartFile) -> bool:
        """Whether the staged part matches the record, and the file in its place does not."""
        staged = part.model_copy(update={"path": part.staged})
        return (
            compare_bytes(self._storage, part, "", lambda _: None) is not None
            and compare_bytes(self._storage, staged, "", lambda _: None) is None
        )

    def _unnamed_plan_files(self) -> list[FileInfo]:
        try:
            named = plan_files(self._storage)
        except (UserError, FileNotFoundError):
            return []
        files = self._storage.list(PLANS)
        return [info for info in files if info.path.endswith(".parquet") and info.path not in named]

    def _search_staging(self) -> None:
        for name in self._storage.children(STAGING):
            number = int(name[:-1]) if name.endswith("/") and name[:-1].isdecimal() else None
            if number is not None and self._before_epoch is not None and number >= self._before_epoch:
                continue
            files = [
                FileInfo(path, size) for path, size in self._staged.items() if path.startswith(f"{STAGING}/{name}")
            ]
            kept = [info for info in files if info.path in self._found.kept]
            if files and not kept and name.endswith("/"):
                self._add(files, "staged by a run that is over", folder=f"{STAGING}/{name}")
                continue
            for info in files:
                if info.path not in self._found.kept:
                    self._add([info], "staged by a run that is over")

    def _add(self, files: Iterable[FileInfo], why: str, *, folder: str | None = None) -> None:
        found = list(files)
        path = folder if folder is not None else found[0].path
        self._found.orphans.append(Orphan(path, len(found), sum(info.size for info in found), why))


def files_of(storage: Storage, orphan: Orphan) -> Iterator[str]:
    """Yield the paths of the files of an orphan."""
    if orphan.path.endswith("/"):
        yield from (info.path for info in storage.list(orphan.path))
    else:
        yield orphan.path
