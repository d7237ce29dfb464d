"""Prove from the files alone that a labelled dataset is what was sealed: hashes, losslessness, conservation.

Every kind of damage is named, and one does not hide another: a shard whose hash is wrong is read all the same.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.checking.job import JobCheck, check_job
from pipeline.checking.problems import Findings, Problem
from pipeline.checking.rereading import NOT_LABELLED, compare_with_inputs
from pipeline.checking.sealed import SealedChecker, check_card, check_manifest
from pipeline.checking.units import UnitChecker, UnitDamage
from pipeline.dataset import open_dataset
from pipeline.dataset.manifest import (
    MANIFEST_NAME,
    DamagedError,
    Manifest,
    no_manifest,
    parse_manifest,
)
from pipeline.job.units import UNITS
from pipeline.sealing.extent import EXTEND, UnfinishedStep, unfinished
from pipeline.sealing.generations import (
    generation_path,
    generations,
    listed_files,
    read_generation,
)
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from scorers.errors import UserError
from scorers.paths import UnsafePathError
from scorers.shell import phf

Progress = Callable[[int, int], None]
"""Called with the bytes of the dataset that are checked, and how many there are."""


@dataclass(frozen=True)
class VerifyReport:
    """What was checked and what is wrong.

    Attributes:
        uri: the dataset.
        manifest: None where there is none that can be read.
        problems: in the order in which they were found.
        inputs_compared: whether the inputs were read again; they are not where something else is wrong.
        remedy: what to do, if anything is wrong.
        parts: of scored units that were checked; None where the units were not.
        unfinished: what was begun and is not done, which is no damage.
    """

    uri: str
    manifest: Manifest | None
    problems: list[Problem]
    inputs_compared: bool = False
    remedy: str | None = None
    parts: int | None = None
    unfinished: tuple[UnfinishedStep, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        manifest = self.manifest
        return {
            "dataset": self.uri,
            "ok": self.ok,
            "problems": [{"path": each.path, "what": each.what, "stray": each.stray} for each in self.problems],
            "remedy": self.remedy,
            "generation": manifest.generation if manifest else None,
            "shards": len(manifest.shards) if manifest else None,
            "bytes": sum(file.size for file in listed_files(manifest)) if manifest else None,
            "documents": manifest.rows if manifest else None,
            "sentences": manifest.sentences if manifest else None,
            "records": manifest.ledger.records if manifest else None,
            "quarantined": sum(manifest.ledger.quarantined.values()) if manifest else None,
            "parts": self.parts,
            "inputs_compared": self.inputs_compared,
            "left_out": [each.model_dump() for each in manifest.left_out] if manifest else None,
            "unfinished": [str(step) for step in self.unfinished],
        }


def verify(uri: str, *, inputs: bool = False, units: bool = True, progress: Progress | None = None) -> VerifyReport:
    """Check everything about a sealed dataset that its files can tell.

    The manifest is the one that was sealed and adds up; every file that it lists is there, with its size and hash, and
    none beside them; every page has its checksum; `ends` cut every text into sentences without rest; every sentence has
    its score, finite and >= 0, and its tag, score <= threshold; every record stands once, in the order of the inputs,
    and none is both labelled and quarantined; and each unit's records are its rows and its quarantine. Where the job
    lies beside the dataset: its configuration and plan are whole; every unit has its commit record, and every part that
    one names is there, with its size and hash, and none beside them.

    Args:
        uri: the dataset.
        inputs: also read the inputs again and compare every record with them, if nothing else is wrong.
        units: also check the scored units and the job, where there are any.
        progress: is told of the bytes as they are read.

    Raises:
        UserError: there is no sealed dataset, it has another schema version, it cannot be reached, or an input that is
            asked for is gone.
    """
    try:
        examined = examine(open_storage(uri), uri, units=units, progress=progress)
        report = examined.report
        if inputs and report.ok:
            findings = Findings()
            keys = {(source, int(each)) for source, positions in examined.quarantined.items() for each in positions}
            compare_with_inputs(open_dataset(uri), keys, findings)
            report = replace(report, problems=findings.problems, inputs_compared=True)
            if findings.problems:
                report = replace(report, remedy=_remedy_of_inputs(report, findings.problems))
        return report
    except OSError as error:
        raise UserError(f"Cannot read {uri}: {error.strerror or error}.") from None


@dataclass(frozen=True)
class Examination:
    """What `verify` reports, and what `phf repair` needs to know beside it.

    Attributes:
        report: everything that is wrong; its manifest is None where none can be read, or nothing was ever sealed.
        sealed: whether a dataset was ever sealed there.
        quarantined: sorted positions by source.
        job: None where the job was not checked, or there is none.
        units: None where they were not checked, or there are none.
    """

    report: VerifyReport
    sealed: bool
    quarantined: Mapping[str, NDArray[np.int64]]
    job: JobCheck | None
    units: UnitDamage | None


def examine(
    storage: Storage, uri: str, *, units: bool = True, unsealed: bool = False, progress: Progress | None = None
) -> Examination:
    """Check what `verify` checks but for the inputs.

    Args:
        storage: the dataset.
        uri: as the user names it.
        units: also check the scored units and the job, where there are any.
        unsealed: let a job pass whose dataset is not sealed yet.
        progress: is told of the bytes as they are read.

    Raises:
        UserError: as `verify`.
        OSError: the storage fails.
    """
    findings = Findings()
    bar = _Bar(progress)
    sealed = not unsealed or _is_sealed(storage)
    try:
        manifest = _read_manifest(storage, uri, findings) if sealed else None
    except DamagedError as error:
        findings.add(MANIFEST_NAME, str(error))
        manifest = _sealed_record(storage, findings)
    verification = None
    if manifest is not None:
        check_manifest(manifest, findings)
        check_card(storage, manifest, findings)
        verification = SealedChecker(storage, manifest, findings, bar.advance)
        bar.total += verification.size
    checker = job = None
    if units and storage.children(UNITS):
        job = check_job(storage, findings)
        if manifest is not None and not generations(storage):
            findings.add(generation_path(manifest.generation), "is missing")
        checker = _unit_checker(storage, findings, job, manifest, bar.advance, sealed=sealed)
        bar.total += checker.size()
    quarantined = verification.run() if verification is not None else {}
    if checker is not None:
        checker.run()
    named = {each.path for each in findings.problems}
    for path, what in storage.irregular():
        if path not in named:
            findings.add(path, what)
    problems = findings.problems
    remedy = _remedy(uri, problems, has_units=checker is not None) if problems else None
    parts = checker.parts if checker is not None else None
    left = unfinished(storage) if units else ()
    report = VerifyReport(uri, manifest, problems, remedy=remedy, parts=parts, unfinished=left)
    return Examination(report, sealed, quarantined, job, checker.damage if checker is not None else None)


def _is_sealed(storage: Storage) -> bool:
    return storage.exists(MANIFEST_NAME) or bool(generations(storage))


def _unit_checker(
    storage: Storage,
    findings: Findings,
    check: JobCheck,
    manifest: Manifest | None,
    advance: Callable[[int], None],
    *,
    sealed: bool,
) -> UnitChecker:
    units = None if check.job is None else len(check.job.plan.units)
    expected: dict[int, int] = {}
    if manifest is not None and check.job is not None:
        expected = dict.fromkeys(check.job.layers_of(manifest.scorers), manifest.ledger.units)
    elif manifest is not None:
        expected = {1: manifest.ledger.units}
    elif sealed and units is not None:
        expected = dict.fromkeys(range(1, check.layer_count + 1), units)
    return UnitChecker(storage, findings, check.layer_count, units, expected, advance)


class _Bar:
    """Adds up what is read, by several threads."""

    def __init__(self, progress: Progress | None) -> None:
        self.total = 0
        self._read = 0
        self._progress = progress
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        with self._lock:
            self._read += count
            if self._progress:
                self._progress(self._read, self.total)


def _remedy(uri: str, problems: Sequence[Problem], *, has_units: bool) -> str:
    if all(each.stray for each in problems):
        return f"`{phf('gc', uri, '--delete')}` removes what should not be there; nothing else is wrong."
    if has_units:
        return f"`{phf('repair', uri)}` mends what can be mended; --dry-run says what it would do."
    return "Copy the dataset again from where it was labelled."


def _remedy_of_inputs(report: VerifyReport, problems: Sequence[Problem]) -> str:
    """`phf repair` mends a dataset; it labels no new inputs, and takes none that have changed."""
    if any(each.what != NOT_LABELLED for each in problems):
        return "Put the inputs back as they were when they were labelled, or label the corpus anew into another output."
    begun = next((step for step in report.unfinished if step.command == EXTEND), None)
    return str(begun) if begun is not None else f"`{EXTEND}` with the settings of the job labels them too."


def _read_manifest(storage: Storage, uri: str, findings: Findings) -> Manifest | None:
    """The manifest to check by: the one that was sealed, where `manifest.json` is another one."""
    committed = generations(storage)
    try:
        data = storage.read(MANIFEST_NAME)
    except (FileNotFoundError, NotADirectoryError):
        if committed:
            findings.add(MANIFEST_NAME, f"is missing, though generation {committed[-1]} is sealed")
            return _sealed_record(storage, findings)
        found = storage.children()
        raise no_manifest(uri, exists=bool(found), labelling="units/" in found) from None
    except UnsafePathError as error:
        raise DamagedError(str(error)) from None
    manifest = parse_manifest(data, f"{uri}/{MANIFEST_NAME}")
    if committed and committed[-1] != manifest.generation:
        what = f"is generation {manifest.generation}, but {committed[-1]} is sealed"
        findings.add(MANIFEST_NAME, what)
        return manifest
    sealed = _sealed_record(storage, findings)
    if sealed is None or sealed == manifest:
        return manifest
    different = sorted(_differences(manifest.model_dump(mode="json"), sealed.model_dump(mode="json")))
    shown = ", ".join(different[:5]) + (f" and {len(different) - 5} more" if len(different) > 5 else "")
    where = generation_path(manifest.generation)
    findings.add(MANIFEST_NAME, f"is not the one that was sealed ({where}): {shown} differ")
    return sealed


def _sealed_record(storage: Storage, findings: Findings) -> Manifest | None:
    """The manifest in the record of the newest generation; None where there is none, as in a copy."""
    committed = generations(storage)
    if not committed:
        return None
    path = generation_path(committed[-1])
    try:
        manifest = read_generation(storage, committed[-1]).manifest
    except DamagedError as error:
        findings.add(path, f"is damaged: {error.__cause__}")
        return None
    if manifest.generation != committed[-1]:
        findings.add(path, f"is the record of generation {manifest.generation}")
        return None
    return manifest


def _differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """Paths of the leaves at which two JSON values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            yield from _differences(one.get(key), other.get(key), f"{path}.{key}" if path else key)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (mine, its) in enumerate(zip(one, other, strict=True)):
            yield from _differences(mine, its, f"{path}.{index}")
    elif one != other:
        yield path
