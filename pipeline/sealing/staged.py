"""Write the files of a generation to a staging folder, under the paths that they will have in the dataset."""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from pipeline.dataset.manifest import File
from pipeline.dataset.writer import parquet_writer
from pipeline.storage.base import Storage


@dataclass(frozen=True)
class StagedFiles:
    """The staging folder of a generation; `path` of the dataset is staged at `folder/path`."""

    storage: Storage
    folder: str

    def write_parquet(self, path: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> File:
        """Write each table as one row group, and return the path, size and hash of the file. Durable on return."""
        with self.storage.open_write(f"{self.folder}/{path}") as sink:
            with pa.PythonFile(sink, mode="w") as file, parquet_writer(file, schema) as writer:
                for table in tables:
                    writer.write_table(table, row_group_size=max(1, table.num_rows))
            return File(path=path, size=sink.size, sha256=sink.sha256)
