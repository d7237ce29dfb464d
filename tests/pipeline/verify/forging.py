"""Forge files with consistent hashes, so that only their content reveals the damage."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.checking.verify import verify
from tests.datasets import write_parquet

SHARD = "data/0001/part-00000.parquet"
UNITS = "ledger/0001/units-00000.parquet"
QUARANTINE = "ledger/0001/quarantine-00000.parquet"


def problems(folder):
    return [str(problem) for problem in verify(str(folder)).problems]


def reforge(folder, path=SHARD, change=None, schema=None, raw=None):
    """Rewrite a Parquet file with other rows and update every record of its hash, so that only its content is wrong.

    `raw` replaces bytes by as many others below Arrow, which would refuse text that is no UTF-8.
    """
    table = pq.read_table(folder / path)
    rows = table.to_pylist()
    change(rows)
    table = pa.Table.from_pylist(rows, schema=schema or table.schema)
    if raw is not None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        table = pa.ipc.open_stream(sink.getvalue().to_pybytes().replace(*raw)).read_all()
    file = write_parquet(folder, path, table, table.schema)
    for name in ("manifest.json", "generations/0001.json"):
        record = json.loads((folder / name).read_text())
        record.pop("crc32", None)
        manifest = record.get("manifest", record)
        for entry in [*manifest["shards"], *manifest["ledger"]["segments"], *manifest["ledger"]["quarantine"]]:
            if entry["path"] == path:
                entry.update(size=file.size, sha256=file.sha256)
        (folder / name).write_text(json.dumps(record))


def edit(folder, *, sealed_too=False, **changes):
    for name in ["manifest.json", *(["generations/0001.json"] if sealed_too else [])]:
        record = json.loads((folder / name).read_text())
        record.pop("crc32", None)
        manifest = record.get("manifest", record)
        for path, value in changes.items():
            *parents, last = path.split("__")
            target = manifest
            for parent in parents:
                target = target[int(parent)] if isinstance(target, list) else target[parent]
            target[last] = value
        (folder / name).write_text(json.dumps(record))


def change_text(rows):
    rows[3]["text"] += "!"
