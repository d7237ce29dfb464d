"""Check a sealed dataset against its manifest: the totals, the card, and every listed file."""

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.checking.accounts import Accounts
from pipeline.checking.files import FileChecker
from pipeline.checking.problems import Findings
from pipeline.checking.row_checker import RowChecker
from pipeline.dataset.card import CARD_NAME, data_files
from pipeline.dataset.manifest import MANIFEST_NAME, Manifest, Shard
from pipeline.dataset.schema import LEDGER_SCHEMA, QUARANTINE_SCHEMA, dataset_schema
from pipeline.dataset.tags import tag_column
from pipeline.sealing.generations import data_folder, listed_files
from pipeline.storage.base import Storage
from scorers.paths import UnsafePathError


def check_manifest(manifest: Manifest, findings: Findings) -> None:
    """Check that the totals of the manifest are consistent."""
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


def check_card(storage: Storage, manifest: Manifest, findings: Findings) -> None:
    """Check that the card names the shards of the current generation."""
    expected = f"path: {data_files(manifest.generation)}"
    try:
        card = storage.read(CARD_NAME).decode(errors="replace")
    except FileNotFoundError:
        findings.add(CARD_NAME, "the data card is missing; `datasets.load_dataset` needs it to find the shards")
        return
    except UnsafePathError as error:
        findings.add(CARD_NAME, str(error))
        return
    if expected not in card:
        findings.add(CARD_NAME, f"the data card does not name the current generation ({expected})")


class SealedChecker:
    """Checks every file that the manifest lists, and reports any others."""

    def __init__(
        self, storage: Storage, manifest: Manifest, findings: Findings, advance: Callable[[int], None]
    ) -> None:
        self._storage = storage
        self._manifest = manifest
        self._findings = findings
        self._files = FileChecker(storage, findings, advance)
        self._columns = list(manifest.scorers)
        self._current = ""

    @property
    def size(self) -> int:
        """The total size of all files that the manifest lists, in bytes."""
        return sum(file.size for file in listed_files(self._manifest))

    def run(self) -> Mapping[str, NDArray[np.int64]]:
        """Check the files, the ledger and all rows; return the sorted positions of quarantined records by source."""
        self._check_listing()
        accounts = self._accounts()
        checker = RowChecker(
            {column: each.value for column, each in self._manifest.thresholds.items() if column in self._columns},
            self._manifest.spans,
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

    def _check_listing(self) -> None:
        """Report files that are not listed, since some readers read every file in a folder."""
        listed = {file.path for file in listed_files(self._manifest)}
        for folder in ("data", "ledger"):
            for file in self._storage.list(folder):
                if file.path not in listed:
                    self._findings.add_stray(file.path, f"{MANIFEST_NAME} does not list it")

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
        """Check a shard; return whether all its rows could be read, even if some are wrong."""
        self._current = shard.path
        if not self._files.check_bytes(shard):
            return False
        rows = sentences = 0
        for table in self._files.row_groups(shard, dataset_schema(self._columns, self._manifest.spans)):
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
        for found, listed, what in ((rows, shard.rows, "rows"), (sentences, shard.sentences, "sentences")):
            if found != listed:
                self._findings.add(shard.path, f"has {found:,} {what}, not {listed:,}")
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
