"""Read and write the plan of a job: a JSON file that names the Parquet files of its sources and units.

`job/plan/0001.json` is the plan that the job was begun with; each `--extend` adds a file (`0002.json`, …), whose
sources and units follow the earlier ones. The Parquet files are named by their content, so that two runs that plan at
the same moment cannot mix their files; the JSON file, created only once, decides whose plan is used.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from pipeline.corpus.inputs import Source
from pipeline.corpus.plan import Plan, Units
from pipeline.corpus.records import Quarantined
from pipeline.dataset.manifest import File, LeftOut, SourceEntry
from pipeline.dataset.writer import parquet_writer
from pipeline.storage.base import Storage
from pipeline.storage.checked_json import from_checked, to_checked
from scorers.errors import UserError
from scorers.paths import UnsafePathError
from scorers.shell import phf

PLANS = "job/plan"
_SOURCE = TypeAdapter(Source)


class PlanFile(BaseModel):
    """The content of `job/plan/NNNN.json`.

    Attributes:
        version: format version of this file.
        inputs: all inputs that the user named, also for an extension.
        sources, units: Parquet files.
        cut: sources that end early.
        left_out: files among the inputs that are not read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    inputs: list[str]
    sources: File
    units: File
    cut: list[Quarantined]
    left_out: list[LeftOut] = Field(default_factory=list)


@dataclass(frozen=True)
class StoredPlan:
    """The plan of a job: all parts joined, the number of parts, and the inputs that the newest part names."""

    plan: Plan
    parts: int
    inputs: list[str]


def plan_path(number: int) -> str:
    """Path of the JSON file of a part of the plan."""
    return f"{PLANS}/{number:04d}.json"


def write_plan(storage: Storage, number: int, inputs: Sequence[str], plan: Plan) -> bool:
    """Write a part of a job's plan, whose sources are numbered from 0; return False if that part already exists.

    Raises:
        OSError: the storage fails.
    """
    named, files = encode_plan(inputs, plan)
    for path, data in files.items():
        storage.put(path, data)
    created = storage.put_if_absent(plan_path(number), to_checked(named, indent=2))
    for path, data in files.items():
        # `phf gc` may have deleted the file while no plan named it yet.
        if created and not storage.exists(path):
            storage.put(path, data)
    return created


def encode_plan(inputs: Sequence[str], plan: Plan) -> tuple[PlanFile, dict[str, bytes]]:
    """Encode a part of a plan: its JSON file, and its Parquet files by path. Equal plans give equal bytes."""
    sources = pa.Table.from_pylist(
        [
            {**asdict(source), "entry": entry.model_dump()}
            for source, entry in zip(plan.sources, plan.entries, strict=True)
        ]
    )
    unit = np.repeat(np.arange(len(plan.units)), np.diff(plan.units.first))
    units = pa.table(
        {"unit": unit} | {name: plan.units.slices[:, index] for index, name in enumerate(("source", "start", "stop"))}
    )
    (first, first_data), (second, second_data) = _encode(sources), _encode(units)
    named = PlanFile(inputs=list(inputs), sources=first, units=second, cut=plan.cut, left_out=plan.left_out)
    return named, {first.path: first_data, second.path: second_data}


def read_plan(storage: Storage) -> StoredPlan | None:
    """Read the plan of a job; None if it was never written.

    Raises:
        UserError: the plan is damaged.
        OSError: the storage fails.
    """
    numbers = sorted(
        int(name.removesuffix(".json"))
        for name in storage.children(PLANS)
        if name.endswith(".json") and name.removesuffix(".json").isdecimal()
    )
    stored: StoredPlan | None = None
    for number in numbers:
        file, plan = read_part(storage, plan_path(number))
        stored = StoredPlan(stored.plan.then(plan) if stored else plan, number, file.inputs)
    return stored


def plan_files(storage: Storage) -> set[str]:
    """Paths of all files of the plan."""
    found = set()
    for name in storage.children(PLANS):
        if name.endswith(".json"):
            path = f"{PLANS}/{name}"
            file = _read_file(storage, path)
            found |= {path, file.sources.path, file.units.path}
    return found


def _read_file(storage: Storage, path: str) -> PlanFile:
    try:
        return from_checked(PlanFile, storage.read(path))
    except ValueError as error:
        raise _damaged(storage, path, f" What is wrong: {error}.") from None


def read_part(storage: Storage, path: str) -> tuple[PlanFile, Plan]:
    """Read one part of the plan, its sources numbered from 0; for errors see `read_plan`."""
    file = _read_file(storage, path)
    try:
        sources = _read(storage, file.sources).to_pylist()
        units = _read(storage, file.units)
        entries = [
            SourceEntry(**{name: value for name, value in source.pop("entry").items() if value is not None})
            for source in sources
        ]
        slices = np.column_stack([units.column(name).to_numpy() for name in ("source", "start", "stop")])
        index = units.column("unit").to_numpy()
        count = int(index[-1]) + 1 if len(index) else 0
        if not 0 <= count <= len(index):
            raise _damaged(storage, path)
        first = np.searchsorted(index, np.arange(count + 1)).astype(np.int64)
        plan = Plan(
            [_SOURCE.validate_python(source) for source in sources],
            entries,
            Units(first, slices.astype(np.int64)),
            file.cut,
            file.left_out,
        )
        _check(plan)
    # Untrusted Parquet may have other types, nulls or missing columns.
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, pa.ArrowException) as error:
        raise _damaged(storage, path, f" What is wrong: {type(error).__name__}.") from None
    return file, plan


def _check(plan: Plan) -> None:
    """Refuse a plan with units or cut sources that refer to no source of it."""
    source, start, stop = plan.units.slices.T
    if ((source < 0) | (source >= len(plan.sources)) | (start < 0) | (stop < start)).any():
        raise ValueError("a unit refers to no source")
    if {each.source for each in plan.cut} - {each.uri for each in plan.entries}:
        raise ValueError("a source that ends early is not in the plan")


def _encode(table: pa.Table) -> tuple[File, bytes]:
    sink = pa.BufferOutputStream()
    with parquet_writer(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    digest = hashlib.sha256(data).hexdigest()
    return File(path=f"{PLANS}/{digest[:32]}.parquet", size=len(data), sha256=digest), data


def _read(storage: Storage, file: File) -> pa.Table:
    try:
        data = storage.read(file.path)
    except (FileNotFoundError, UnsafePathError):
        raise _damaged(storage, file.path) from None
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise _damaged(storage, file.path)
    # Read in this thread: a pyarrow thread that frees Python's bytes during interpreter shutdown aborts the process.
    with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False, page_checksum_verification=True) as parquet:
        return parquet.read(use_threads=False)


def _damaged(storage: Storage, path: str, what: str = "") -> UserError:
    return UserError(
        f"{storage.uri}/{path} is damaged or missing. `{phf('repair', storage.uri)}` rebuilds the plan from the "
        f"inputs.{what}"
    )
