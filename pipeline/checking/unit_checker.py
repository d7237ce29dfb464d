"""Check the scored units of a job: commit records, parts and segments of all layers, against each other."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pipeline.checking.files import compare_bytes
from pipeline.checking.problems import Findings
from pipeline.job.unit_folders import FolderSurvey, is_record, survey_folder
from pipeline.job.unit_records import PartFile, UnitRecord
from pipeline.job.unit_store import FOLDER_UNITS, UNITS, UnitStore
from pipeline.storage.base import Storage

# Each part is read by one thread: enough threads for a disk, few enough that their buffers are negligible.
_THREADS = 8

Key = tuple[int, int]
"""A layer, and a unit or folder in it."""


@dataclass
class UnitDamage:
    """The damage to the units of a job.

    Attributes:
        copied: units whose record is damaged or lost, with its copy from the segment.
        unknown: units whose record is damaged or lost, without a copy.
        parts: units with damaged or lost parts: their record, and the groups of these parts.
        staged: parts that are damaged or missing, but intact in their staging folder.
        segments: folders whose segment is damaged or lost.
    """

    copied: dict[Key, UnitRecord] = field(default_factory=dict)
    unknown: list[Key] = field(default_factory=list)
    parts: dict[Key, tuple[UnitRecord, list[str]]] = field(default_factory=dict)
    staged: list[PartFile] = field(default_factory=list)
    segments: list[Key] = field(default_factory=list)


class UnitChecker:
    """Checks everything below `units/`.

    Args:
        findings: collects the problems.
        layers: the number of layers.
        units: the number of units of the plan; None if unknown.
        sealed: by layer, the number of units in the sealed dataset, all of which must be committed.
        advance: called with the number of bytes read since the last call.
    """

    def __init__(
        self,
        storage: Storage,
        findings: Findings,
        layers: int,
        units: int | None,
        sealed: Mapping[int, int],
        advance: Callable[[int], None],
    ) -> None:
        self.damage = UnitDamage()
        self.parts = 0
        self._storage = storage
        self._findings = findings
        self._layers = layers
        self._units = units
        self._sealed = sealed
        self._advance = advance

    def size(self) -> int:
        """The total number of bytes to check."""
        return sum(info.size for info in self._storage.list(UNITS))

    def run(self) -> None:
        """Check all layers.

        Raises:
            OSError: the storage fails.
        """
        with ThreadPoolExecutor(_THREADS) as threads:
            for layer in range(1, self._layers + 1):
                store = UnitStore(self._storage, layer)
                for folder in self._folders(store):
                    self._check_folder(store, folder, threads)
        for name in self._storage.children(UNITS):
            if not (name.endswith("/") and name[:-1] in {f"{layer:04d}" for layer in range(1, self._layers + 1)}):
                for path in self._below(f"{UNITS}/{name}"):
                    self._findings.add_stray(path, "belongs to no layer of the job")

    def _folders(self, store: UnitStore) -> list[int]:
        names = self._storage.children(store.folder)
        known = {int(name[:5]) for name in names if name[:5].isdecimal() and name[5:] in {"/", ".parquet"}}
        for name in names:
            if not (name[:5].isdecimal() and name[5:] in {"/", ".parquet"}):
                for path in self._below(f"{store.folder}/{name}"):
                    self._findings.add_stray(path, "is not part of any unit")
        return sorted(known | set(range(-(-self._sealed.get(store.layer, 0) // FOLDER_UNITS))))

    def _below(self, path: str) -> list[str]:
        return [info.path for info in self._storage.list(path)] if path.endswith("/") else [path]

    def _check_folder(self, store: UnitStore, folder: int, threads: ThreadPoolExecutor) -> None:
        survey = survey_folder(store, folder)
        lost = self._check_records(store, folder, survey)
        listed = [(record, part) for record in survey.records.values() for part in record.parts]
        self.parts += len(listed)
        problems = threads.map(lambda each: self._check_part(store, *each), listed)
        for (record, part), problem in zip(listed, problems, strict=True):
            if problem is not None:
                self._findings.add(part.path, problem)
                key = (store.layer, record.unit)
                if self._is_staged(part):
                    self.damage.staged.append(part)
                else:
                    self.damage.parts.setdefault(key, (record, []))[1].append(part.group)
        self._check_strays(store, folder, survey, survey.unknown | lost)
        self._advance(sum(size for name, size in survey.files.items() if not name.endswith(".parquet")))
        self._advance(self._storage.size(store.segment_path(folder)) or 0)

    def _check_records(self, store: UnitStore, folder: int, survey: FolderSurvey) -> set[int]:
        """Check records and segment; return the units of the sealed dataset that have no record at all."""
        first = folder * FOLDER_UNITS
        sealed = range(first, min(first + FOLDER_UNITS, self._sealed.get(store.layer, 0)))
        lost = {unit: "is missing" for unit in sealed if unit not in survey.records and unit not in survey.damaged}
        for unit, what in sorted({**survey.damaged, **lost}.items()):
            if self._is_planned(unit):
                self._findings.add(store.record_path(unit), what)
                if unit in survey.records:
                    self.damage.copied[store.layer, unit] = survey.records[unit]
                else:
                    self.damage.unknown.append((store.layer, unit))
        problem = survey.segment_problem
        if problem is None and not survey.has_segment and len(sealed) == FOLDER_UNITS:
            problem = "is missing"
        if problem is not None:
            self._findings.add(store.segment_path(folder), problem)
            self.damage.segments.append((store.layer, folder))
        return set(lost)

    def _check_part(self, store: UnitStore, record: UnitRecord, part: PartFile) -> str | None:
        if not self._is_planned(record.unit):
            return None
        problem = compare_bytes(self._storage, part, store.record_path(record.unit), self._advance)
        if problem is None:
            return None
        sealed = record.unit < self._sealed.get(store.layer, 0)
        # Not damage: a driver died between writing the record and moving the part, which the next driver will do.
        return None if not sealed and problem.what == "is missing" and self._is_staged(part) else problem.what

    def _is_staged(self, part: PartFile) -> bool:
        there = part.model_copy(update={"path": part.staged})
        return bool(part.staged) and compare_bytes(self._storage, there, "", lambda _: None) is None

    def _check_strays(self, store: UnitStore, folder: int, survey: FolderSurvey, unknown: set[int]) -> None:
        prefix = f"{store.folder}/{folder:05d}/"
        named = {part.path for record in survey.records.values() for part in record.parts}
        for name in survey.files:
            path, unit = prefix + name, int(name[:8]) if name[:8].isdecimal() else None
            if unit is not None and not self._is_planned(unit):
                self._findings.add_stray(path, "belongs to no unit of the plan")
            elif is_record(name) or path in named or unit in unknown:
                continue
            elif unit is not None and self._storage.exists(store.record_path(unit)) and unit not in survey.records:
                continue  # committed since the folder was read
            elif unit is None or unit not in survey.records:
                self._findings.add_stray(path, "no commit record names it")
            else:
                self._findings.add_stray(path, "the unit's commit record does not name it")

    def _is_planned(self, unit: int) -> bool:
        return self._units is None or unit < self._units
