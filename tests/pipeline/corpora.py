"""Write corpora for tests: files of every format from the same lines, and configurations that read them."""

import bz2
import gzip
import json
import lzma
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import zstandard

from pipeline.config import LabelConfig
from pipeline.corpus.cut_units import make_plan
from pipeline.corpus.plan import Plan, Unit
from pipeline.corpus.readers import UnitReader
from pipeline.corpus.records import Quarantined, Record


def make_config(*inputs: Path | str, **options: Any) -> LabelConfig:
    """A job over `inputs`, for tests that only read them."""
    given = {"output": "/nonexistent/output", "scorers": {"pii": {"kind": "scrubadub"}}} | options
    return LabelConfig(inputs=[str(each) for each in inputs], **given)


def write_lines(path: Path, lines: bytes, members: int = 1) -> Path:
    """Write lines, compressed according to the path's suffix, in `members` members or frames."""
    cuts = [len(lines) * member // members for member in range(members + 1)]
    pieces = [lines[start:end] for start, end in pairwise(cuts)]
    if path.suffix == ".gz":
        pieces = [gzip.compress(piece, mtime=0) for piece in pieces]
    elif path.suffix == ".zst":
        pieces = [zstandard.compress(piece) for piece in pieces]
    elif path.suffix == ".bz2":
        pieces = [bz2.compress(piece) for piece in pieces]
    elif path.suffix == ".xz":
        pieces = [lzma.compress(piece) for piece in pieces]
    path.write_bytes(b"".join(pieces))
    return path


def write_records(path: Path, *records: Any) -> Path:
    """Write JSON values, one per line."""
    return write_lines(path, b"".join(json.dumps(record).encode() + b"\n" for record in records))


def read_all(config: LabelConfig) -> tuple[Plan, list[list[Record | Quarantined]]]:
    """Plan a job and read all units; returns the plan and the records by unit."""
    plan = make_plan(config)
    return plan, _read(plan.units, plan, config)


def read_backwards(plan: Plan, config: LabelConfig) -> list[Record | Quarantined]:
    """Read the units of a plan from the last to the first; returns the records in order."""
    return flat(_read(plan.units[::-1], plan, config)[::-1])


def _read(units: Sequence[Unit], plan: Plan, config: LabelConfig) -> list[list[Record | Quarantined]]:
    reader = UnitReader(plan, config)
    try:
        return [list(reader.read(unit)) for unit in units]
    finally:
        reader.close()


def flat(units: list[list[Record | Quarantined]]) -> list[Record | Quarantined]:
    """All records of all units in order."""
    return [record for unit in units for record in unit]
