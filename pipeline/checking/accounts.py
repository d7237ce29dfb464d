"""Compare the ledger of a dataset, unit by unit, with its rows and quarantine entries."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.checking.problems import Findings
from pipeline.dataset.manifest import Manifest
from scorers.amounts import format_count

_LEDGER = "ledger"
_FIGURES = ("labelled", "empty", "sentences", "bytes_text")


class Accounts:
    """Compares the ledger of a dataset with its rows, which are in the order of the units.

    Args:
        manifest: the manifest, whose totals the ledger must match.
        units: rows of `LEDGER_SCHEMA`, from all segments.
        references: rows of `QUARANTINE_SCHEMA`, from all files.
        findings: collects the problems.
    """

    def __init__(self, manifest: Manifest, units: pa.Table, references: pa.Table, findings: Findings) -> None:
        self._manifest = manifest
        self._findings = findings
        self._units = units
        self._expected = {name: units.column(name).to_numpy() for name in _FIGURES}
        self._stops = np.cumsum(self._expected["labelled"] + self._expected["empty"])
        self._found = {name: np.zeros(units.num_rows, dtype=np.int64) for name in _FIGURES}
        self._rows = 0
        self._check_units()
        self._check_references(references)
        self.quarantined = _positions(references)
        """Sorted positions of the quarantined records by source."""

    def add(self, rows: pa.Table) -> None:
        """Count the next rows of the dataset towards their units."""
        index = np.searchsorted(self._stops, np.arange(self._rows, self._rows + rows.num_rows), side="right")
        self._rows += rows.num_rows
        known = index < len(self._stops)
        text_bytes = pc.binary_length(rows.column("text")).to_numpy()
        figures = {
            "labelled": (text_bytes > 0).astype(np.int64),
            "empty": (text_bytes == 0).astype(np.int64),
            "sentences": pc.list_value_length(rows.column("ends")).to_numpy(),
            "bytes_text": text_bytes,
        }
        for name, values in figures.items():
            np.add.at(self._found[name], index[known], values[known])

    def finish(self) -> None:
        """Report the units whose rows differ from the ledger."""
        expected = int(self._stops[-1]) if len(self._stops) else 0
        if self._rows != expected:
            self._findings.add(
                _LEDGER, f"the units have {format_count(expected, 'row')}, but the shards hold {self._rows:,}"
            )
            return
        for name in _FIGURES:
            wrong = np.flatnonzero(self._found[name] != self._expected[name])
            if len(wrong):
                unit = self._units.column("unit")[int(wrong[0])].as_py()
                found, listed = int(self._found[name][wrong[0]]), int(self._expected[name][wrong[0]])
                self._findings.add(
                    _LEDGER,
                    f"the rows of {len(wrong):,} unit{'s' * (len(wrong) != 1)} have a different number of {name} than "
                    f"it says; the first is unit {unit:08d}: {found:,}, not {listed:,}",
                )

    def _check_units(self) -> None:
        units = self._units.to_pylist() if self._units.num_rows else []
        ledger = self._manifest.ledger
        totals: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for unit in units:
            out = dict(unit["quarantined"])
            if unit["records"] != unit["labelled"] + unit["empty"] + sum(out.values()):
                self._findings.add(
                    _LEDGER,
                    f"unit {unit['unit']:08d} does not add up: {unit['records']} records are not {unit['labelled']} "
                    f"labelled + {unit['empty']} empty + {sum(out.values())} quarantined",
                )
            reasons.update(out)
            totals.update({name: unit[name] for name in ("records", *_FIGURES)})
        expected = {
            "records": ledger.records,
            "labelled": ledger.labelled,
            "empty": ledger.empty,
            "sentences": self._manifest.sentences,
            "bytes_text": self._manifest.bytes_text,
        }
        for name, figure in expected.items():
            if totals[name] != figure:
                self._findings.add(_LEDGER, f"its units have {totals[name]:,} {name}, but the manifest says {figure:,}")
        self._compare_reasons("its units", reasons)

    def _check_references(self, references: pa.Table) -> None:
        in_units = references.filter(pc.is_valid(references.column("unit")))
        cut = references.num_rows - in_units.num_rows
        if cut != self._manifest.ledger.sources_cut:
            listed = self._manifest.ledger.sources_cut
            self._findings.add(
                _LEDGER, f"its quarantine has {cut} sources that end early, but the manifest says {listed}"
            )
        self._compare_reasons("its quarantine", Counter(in_units.column("reason").to_pylist()))
        found = Counter(in_units.column("unit").to_pylist())
        for unit, out in zip(self._units["unit"].to_pylist(), self._units["quarantined"].to_pylist(), strict=True):
            if found[unit] != sum(dict(out).values()):
                self._findings.add(
                    _LEDGER,
                    f"unit {unit:08d} has {sum(dict(out).values())} quarantined records, but {found[unit]} references",
                )

    def _compare_reasons(self, whose: str, found: Mapping[str, int]) -> None:
        listed = self._manifest.ledger.quarantined
        for reason in sorted(found.keys() | listed.keys()):
            if found.get(reason, 0) != listed.get(reason, 0):
                self._findings.add(
                    _LEDGER,
                    f"{whose} has {format_count(found.get(reason, 0), 'record')} with the reason {reason}, but the "
                    f"manifest says {listed.get(reason, 0):,}",
                )


def _positions(references: pa.Table) -> dict[str, NDArray[np.int64]]:
    references = references.filter(pc.is_valid(references.column("unit")))
    positions: defaultdict[str, list[Any]] = defaultdict(list)
    for source, position in zip(references["source"].to_pylist(), references["position"].to_pylist(), strict=True):
        positions[source].append(position)
    return {source: np.sort(np.array(values, dtype=np.int64)) for source, values in positions.items()}
