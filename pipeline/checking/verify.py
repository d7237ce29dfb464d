"""Prove from the files alone that a labelled dataset is what was sealed: hashes, losslessness, conservation.

Every kind of damage is named, and one does not hide another: a shard whose hash is wrong is read all the same.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.checking.accounts import Accounts
from pipeline.checking.files import FileChecker
from pipeline.checking.findings import Findings, Problem
from pipeline.checking.rereading import compare_with_inputs
from pipeline.checking.rows import RowChecker
from pipeline.dataset import open_dataset
from pipeline.dataset.card import CARD_NAME, data_files
from pipeline.dataset.manifest import (
    MANIFEST_NAME,
    DamagedError,
    Manifest,
    Shard,
    no_manifest,
    parse_manifest,
)
from pipeline.dataset.schema import LEDGER_SCHEMA, QUARANTINE_SCHEMA, dataset_schema
from pipeline.dataset.tags import tag_column
from pipeline.sealing.generations import (
    GENERATIONS,
    data_folder,
    generation_path,
    generations,
    listed_files,
    read_generation,
)
from pipeline.storage import Storage
from pipeline.units.store import UNITS
from scorers.errors import UserError

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
    """

    uri: str
    manifest: Manifest | None
    problems: list[Problem]
    inputs_compared: bool = False
    remedy: str | None = None

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
            "problems": [{"path": each.path, "what": each.what} for each in self.problems],
            "remedy": self.remedy,
            "generation": manifest.generation if manifest else None,
            "shards": len(manifest.shards) if manifest else None,
            "bytes": sum(file.size for file in listed_files(manifest)) if manifest else None,
            "documents": manifest.rows if manifest else None,
            "sentences": manifest.sentences if manifest else None,
            "records": manifest.ledger.records if manifest else None,
            "quarantined": sum(manifest.ledger.quarantined.values()) if manifest else None,
            "inputs_compared": self.inputs_compared,
        }


def verify(uri: str, *, inputs: bool = False, progress: Progress | None = None) -> VerifyReport:
    """Check everything about a sealed dataset that its files can tell.

    The manifest is the one that was sealed and adds up; every file that it lists is there, with its size and hash, and
    none beside them; every page has its checksum; `ends` cut every text into sentences without rest; every sentence has
    its score, finite and >= 0, and its tag, score <= threshold; every record stands once, in the order of the inputs,
    and none is both labelled and quarantined; and each unit's records are its rows and its quarantine.

    Args:
        uri: the dataset.
        inputs: also read the inputs again and compare every record with them, if nothing else is wrong.
        progress: is told of the bytes as they are read.

    Raises:
        UserError: there is no sealed dataset, it has another schema version, it cannot be reached, or an input that is
            asked for is gone.
    """
    try:
        return _verify(uri, inputs=inputs, progress=progress)
    except OSError as error:
        raise UserError(f"Cannot read {uri}: {error.strerror or error}.") from None


def _verify(uri: str, *, inputs: bool, progress: Progress | None) -> VerifyReport:
    storage = Storage.open(uri)
    findings = Findings()
    try:
        manifest = _read_manifest(storage, uri, findings)
    except DamagedError as error:
        findings.add(MANIFEST_NAME, str(error))
        manifest = None
    compared = False
    if manifest is not None:
        _check_manifest(manifest, findings)
        _check_card(storage, manifest, findings)
        quarantined = _Verification(storage, manifest, findings, progress).run()
        if inputs and not findings.problems:
            keys = {(source, int(each)) for source, positions in quarantined.items() for each in positions}
            compare_with_inputs(open_dataset(uri), keys, findings)
            compared = True
    problems = findings.problems
    remedy = _remedy(bool(storage.children(UNITS))) if problems else None
    return VerifyReport(uri, manifest, problems, compared, remedy)


def _remedy(has_units: bool) -> str:
    if has_units:
        return (
            f"To write the dataset anew from its scored units, delete {MANIFEST_NAME} and {GENERATIONS}/ and run the "
            "same `phf label` command again: it tags by its own thresholds, and scores nothing twice."
        )
    return "Copy the dataset again from where it was labelled."


def _read_manifest(storage: Storage, uri: str, findings: Findings) -> Manifest | None:
    committed = generations(storage)
    try:
        data = storage.read(MANIFEST_NAME)
    except (FileNotFoundError, NotADirectoryError):
        if committed:
            findings.add(MANIFEST_NAME, f"is missing, though generation {committed[-1]} is sealed; {_REPAIR}")
            return None
        found = storage.children()
        raise no_manifest(uri, exists=bool(found), labelling="units/" in found) from None
    manifest = parse_manifest(data, f"{uri}/{MANIFEST_NAME}")
    if committed and committed[-1] != manifest.generation:
        findings.add(MANIFEST_NAME, f"is generation {manifest.generation}, but {committed[-1]} is sealed; {_REPAIR}")
    elif committed:
        try:
            sealed = read_generation(storage, manifest.generation).manifest
        except DamagedError as error:
            findings.add(generation_path(manifest.generation), str(error))
            return manifest
        different = sorted(_differences(manifest.model_dump(mode="json"), sealed.model_dump(mode="json")))
        if different:
            shown = ", ".join(different[:5]) + (f" and {len(different) - 5} more" if len(different) > 5 else "")
            where = generation_path(manifest.generation)
            findings.add(MANIFEST_NAME, f"is not the one that was sealed ({where}): {shown} differ; {_REPAIR}")
    return manifest


_REPAIR = "the same `phf label` command again writes it anew"


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


def _check_manifest(manifest: Manifest, findings: Findings) -> None:
    """The manifest's own arithmetic."""
    ledger = manifest.ledger
    total = sum(ledger.quarantined.values())
    claims = [
        (
            ledger.balanced,
            f"{ledger.records} records are not {ledger.labelled} labelled + {ledger.empty} empty + {total} quarantined",
        ),
        (
            manifest.rows == ledger.labelled + ledger.empty,
            f"the shards hold {manifest.rows} rows, not {ledger.labelled} labelled + {ledger.empty} empty",
        ),
        (
            sum(shard.sentences for shard in manifest.shards) == manifest.sentences,
            f"the shards do not hold {manifest.sentences} sentences",
        ),
        (
            sum(source.records for source in manifest.sources) == ledger.records,
            f"the sources do not hold {ledger.records} records",
        ),
        (list(manifest.scorers) == list(manifest.thresholds), "the columns of its scorers and its thresholds differ"),
        (
            all(shard.path.startswith(data_folder(manifest.generation) + "/") for shard in manifest.shards),
            f"a shard is not in {data_folder(manifest.generation)}",
        ),
    ]
    for holds, what in claims:
        if not holds:
            findings.add(MANIFEST_NAME, f"does not add up: {what}")


def _check_card(storage: Storage, manifest: Manifest, findings: Findings) -> None:
    expected = f"path: {data_files(manifest.generation)}"
    if not storage.exists(CARD_NAME):
        findings.add(CARD_NAME, "the data card is missing; `datasets.load_dataset` finds the shards by it")
    elif expected not in storage.read(CARD_NAME).decode(errors="replace"):
        findings.add(CARD_NAME, f"the data card does not name the current generation ({expected})")


class _Verification:
    """Checks every file that the manifest lists, and that there are no others."""

    def __init__(self, storage: Storage, manifest: Manifest, findings: Findings, progress: Progress | None) -> None:
        self._storage = storage
        self._manifest = manifest
        self._findings = findings
        self._files = FileChecker(storage, findings, self._advance)
        self._progress = progress
        self._bytes = sum(file.size for file in listed_files(manifest))
        self._read = 0
        self._columns = list(manifest.scorers)
        self._current = ""

    def run(self) -> Mapping[str, NDArray[np.int64]]:
        """Check the files, the ledger, then all rows; returns the sorted positions of quarantined records by source."""
        self._check_listing()
        accounts = self._accounts()
        checker = RowChecker(
            {column: each.value for column, each in self._manifest.thresholds.items() if column in self._columns},
            [source.uri for source in self._manifest.sources],
            accounts.quarantined if accounts else {},
            lambda what, rows: self._findings.add_rows(self._current, what, rows),
        )
        tagged: Counter[str] = Counter()
        whole = [self._check_shard(shard, checker, accounts, tagged) for shard in self._manifest.shards]
        if all(whole):
            self._check_counts(tagged)
            if accounts:
                accounts.finish()
        return accounts.quarantined if accounts else {}

    def _advance(self, count: int) -> None:
        self._read += count
        if self._progress:
            self._progress(self._read, self._bytes)

    def _check_listing(self) -> None:
        """Nothing lies beside the files that are listed, as some readers take all that they find."""
        listed = {file.path for file in listed_files(self._manifest)}
        for folder in ("data", "ledger"):
            for file in self._storage.list(folder):
                if file.path not in listed:
                    self._findings.add(file.path, f"{MANIFEST_NAME} does not list it; delete it")

    def _accounts(self) -> Accounts | None:
        ledger = self._manifest.ledger
        units = [self._files.table(file, LEDGER_SCHEMA) for file in ledger.segments]
        references = [self._files.table(file, QUARANTINE_SCHEMA) for file in ledger.quarantine]
        if any(table is None for table in (*units, *references)):
            return None
        return Accounts(
            self._manifest,
            pa.concat_tables([LEDGER_SCHEMA.empty_table(), *units]),
            pa.concat_tables([QUARANTINE_SCHEMA.empty_table(), *references]),
            self._findings,
        )

    def _check_shard(self, shard: Shard, checker: RowChecker, accounts: Accounts | None, tagged: Counter[str]) -> bool:
        """Whether all of its rows could be read, whatever is wrong with them."""
        self._current = shard.path
        if not self._files.check_bytes(shard):
            return False
        rows = sentences = 0
        for table in self._files.row_groups(shard, dataset_schema(self._columns)):
            if table is None:
                return False
            rows += table.num_rows
            sentences += pc.sum(pc.list_value_length(table.column("ends"))).as_py() or 0
            checker.check(table)
            if accounts:
                accounts.add(table)
            for column in self._columns:
                tags = pc.list_flatten(table.column(tag_column(column)))
                tagged[column] += len(tags)
                tagged[tag_column(column)] += pc.sum(tags).as_py() or 0
        for found, said, what in ((rows, shard.rows, "rows"), (sentences, shard.sentences, "sentences")):
            if found != said:
                self._findings.add(shard.path, f"has {found:,} {what}, not {said:,}")
        return True

    def _check_counts(self, tagged: Counter[str]) -> None:
        for column, threshold in self._manifest.thresholds.items():
            found = (tagged[column], tagged[tag_column(column)])
            if found != (threshold.sentences, threshold.aligned):
                self._findings.add(
                    MANIFEST_NAME,
                    f"says that by {column} {threshold.aligned:,} of {threshold.sentences:,} sentences are aligned, "
                    f"but {found[1]:,} of {found[0]:,} are",
                )
