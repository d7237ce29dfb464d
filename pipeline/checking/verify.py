"""Verify from its files alone that a labelled dataset is what was sealed: hashes, losslessness, conservation.

All damage is reported, and one kind does not hide another: a shard with a wrong hash is still read.
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
from pipeline.checking.unit_checker import UnitChecker, UnitDamage
from pipeline.dataset import open_dataset
from pipeline.dataset.manifest import (
    MANIFEST_NAME,
    DamagedError,
    Manifest,
    no_manifest,
    parse_manifest,
)
from pipeline.job.unit_store import UNITS
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
"""Called with the number of bytes checked, and the total number of bytes."""


@dataclass(frozen=True)
class VerifyReport:
    """The result of a verification.

    Attributes:
        uri: the dataset.
        manifest: the manifest; None if there is no readable one.
        problems: in the order in which they were found.
        inputs_compared: whether the inputs were read again, which happens only if nothing else is wrong.
        remedy: what to do, if anything is wrong.
        parts: number of parts of scored units that were checked; None if the units were not checked.
        unfinished: the unfinished steps, which are not damage.
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
        """Convert to JSON values."""
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
    """Check everything about a sealed dataset that can be checked from its files.

    The manifest is the one that was sealed, and its totals are consistent; every listed file exists with its size and
    hash, and no others exist; page checksums match; `ends` partition every text; every sentence has a score, finite and
    >= 0, and a tag, score <= threshold; every record occurs once, in the order of the inputs, and none is both labelled
    and quarantined; the records of each unit are its rows and its quarantine. If the dataset has its job: configuration
    and plan are intact; every unit has its commit record; every part that a record names exists with its size and hash,
    and no others exist.

    Args:
        uri: the dataset.
        inputs: also read the inputs again and compare every record with them, if nothing else is wrong.
        units: also check the scored units and the job, if there are any.
        progress: called as bytes are read.

    Raises:
        UserError: there is no sealed dataset, it has another schema version, it cannot be reached, or an input to
            compare is missing.
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
    """The report of `verify`, with the additional information that `phf repair` needs.

    Attributes:
        report: the report; its manifest is None if there is no readable one, or nothing was ever sealed.
        sealed: whether a dataset was ever sealed there.
        quarantined: sorted positions of quarantined records by source.
        job: damage to the job; None if it was not checked, or there is none.
        units: damage to the units; None if they were not checked, or there are none.
    """

    report: VerifyReport
    sealed: bool
    quarantined: Mapping[str, NDArray[np.int64]]
    job: JobCheck | None
    units: UnitDamage | None


def examine(
    storage: Storage, uri: str, *, units: bool = True, unsealed: bool = False, progress: Progress | None = None
) -> Examination:
    """Check everything that `verify` checks, except the inputs.

    Args:
        storage: the dataset.
        uri: its name as the user gave it, for messages.
        units: also check the scored units and the job, if there are any.
        unsealed: accept a job whose dataset is not sealed yet.
        progress: called as bytes are read.

    Raises:
        UserError: see `verify`.
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
    """Adds up the bytes read by several threads."""

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
        return f"Run `{phf('gc', uri, '--delete')}` to remove the files that should not exist; nothing else is wrong."
    if has_units:
        return f"Run `{phf('repair', uri)}` to repair the damage, or first with --dry-run to see what it would do."
    return "Copy the dataset again from where it was labelled."


def _remedy_of_inputs(report: VerifyReport, problems: Sequence[Problem]) -> str:
    """The remedy for differing inputs, which `phf repair` does not handle."""
    if any(each.what != NOT_LABELLED for each in problems):
        return "Restore the inputs as they were when they were labelled, or label the corpus into another output."
    begun = next((step for step in report.unfinished if step.command == EXTEND), None)
    return str(begun) if begun is not None else f"Run `{EXTEND}` with the settings of the job to label them too."


def _read_manifest(storage: Storage, uri: str, findings: Findings) -> Manifest | None:
    """The manifest to check against: the sealed one if `manifest.json` differs from it."""
    committed = generations(storage)
    try:
        data = storage.read(MANIFEST_NAME)
    except (FileNotFoundError, NotADirectoryError):
        if committed:
            findings.add(MANIFEST_NAME, f"is missing, though generation {committed[-1]} is sealed")
            return _sealed_record(storage, findings)
        raise no_manifest(uri, storage.children()) from None
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
    """The manifest in the record of the newest generation; None if there is no record, as in a copy."""
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
    """Yield the paths of the leaves at which two JSON values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            yield from _differences(one.get(key), other.get(key), f"{path}.{key}" if path else key)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (mine, its) in enumerate(zip(one, other, strict=True)):
            yield from _differences(mine, its, f"{path}.{index}")
    elif one != other:
        yield path
