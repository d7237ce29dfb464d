"""Arrays on disk as Arrow IPC files of one column in one record batch: written in pieces, read as memory maps."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray


class ArrayWriter:
    """Write an array of unknown length in constant memory; a context manager.

    The values go to a flat file first, because an Arrow record batch starts with its length. The Arrow file is written
    when the `with` block ends without an error.
    """

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self.length = 0
        self._flat = path.with_suffix(".flat")

    def __enter__(self) -> Self:
        self._file = self._flat.open("wb")
        return self

    def append(self, values: NDArray[Any]) -> None:
        """Append values [n], cast to the array's dtype."""
        np.ascontiguousarray(values, dtype=self.dtype).tofile(self._file)
        self.length += len(values)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            flat = np.memmap(self._flat, self.dtype, "r") if self.length else np.zeros(0, self.dtype)
            write_array(self.path, flat)
        self._flat.unlink()


def write_array(path: Path, values: NDArray[Any]) -> None:
    """Write a whole array [n] of a numeric dtype."""
    array = pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])
    batch = pa.record_batch([array], names=["value"])
    options = pa.ipc.IpcWriteOptions(allow_64bit=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)


def read_array(path: Path) -> NDArray[Any]:
    """Return a memory-mapped, read-only view of the array in an Arrow file.

    Raises:
        OSError, pyarrow.ArrowException: the file is missing or damaged.
    """
    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
    if batch.num_columns != 1:
        raise pa.ArrowInvalid("the file does not have exactly one column")
    # Without this, a length greater than the buffer would read past the end of the file.
    batch.validate()
    values: NDArray[Any] = batch.column(0).to_numpy(zero_copy_only=True)
    return values
