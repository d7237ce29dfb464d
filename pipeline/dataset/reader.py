"""Open a sealed labelled dataset and stream its rows; refuse incomplete or damaged ones."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.dataset.manifest import MANIFEST_NAME, DamagedError, File, Manifest, Shard, no_manifest, parse_manifest
from pipeline.dataset.schema import dataset_schema
from scorers.errors import UserError
from scorers.paths import UnsafePathError, place_below
from scorers.printing import refuse_secret
from scorers.shell import phf


@dataclass(frozen=True)
class LabelledDataset:
    """A sealed dataset: its manifest, and its rows in order.

    Attributes:
        uri: a local folder or any URI of pyarrow.fs, as the user gave it.
        manifest: the contract; only the shards that it lists are read.
    """

    uri: str
    manifest: Manifest
    _filesystem: pafs.FileSystem
    _root: str

    @property
    def columns(self) -> list[str]:
        """The score columns, in the order of the schema."""
        return list(self.manifest.scorers)

    def require_column(self, column: str) -> None:
        """Refuse a dataset that lacks a score column.

        Raises:
            UserError: the column is missing; the message names the existing ones.
        """
        if column not in self.manifest.scorers:
            raise UserError(
                f"{self.uri} has no score column {column!r}; it has: {', '.join(self.columns) or 'none'}. "
                f"Choose one of them, or label the corpus with --scorer {column}."
            )

    def read_batches(self, columns: Sequence[str] | None = None, *, rows: int = 1024) -> Iterator[pa.RecordBatch]:
        """Yield the rows of all shards in order, in batches of at most `rows`, and verify page checksums.

        `columns` are names of the schema; None means all.

        Raises:
            DamagedError: a shard cannot be read or is damaged; names the file.
            UserError: the dataset has been retagged since it was opened.
        """
        for shard in self.manifest.shards:
            yield from self.read_shard(shard, columns, rows=rows)

    def read_quarantine(self, *, rows: int = 1024) -> Iterator[pa.RecordBatch]:
        """Yield the quarantine, in the order of the inputs: columns source, position, reason and detail.

        Texts are never included, even if the job kept them.

        Raises:
            DamagedError: a file cannot be read; names it.
            UserError: the dataset has been retagged since it was opened.
        """
        for file in self.manifest.ledger.quarantine:
            yield from self.read_shard(file, ["source", "position", "reason", "detail"], rows=rows)

    def read_shard(
        self, shard: File, columns: Sequence[str] | None = None, *, rows: int = 1024
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one shard, or of another Parquet file of the dataset; see `read_batches`."""
        try:
            path = _place(self._filesystem, self._root, shard.path)
            with pq.ParquetFile(path, filesystem=self._filesystem, page_checksum_verification=True) as parquet:
                for batch in parquet.iter_batches(rows, columns=list(columns) if columns is not None else None):
                    batch.validate(full=True)  # pyarrow reads text that is no UTF-8 as it is
                    yield batch
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(shard, _brief(error)) from None

    def check(self) -> None:
        """Compare every shard's size, footer, row count and schema with the manifest; hashes are for `phf verify`.

        Raises:
            DamagedError: a shard is missing, or has another size or schema; names it.
        """
        expected = dataset_schema(self.columns, self.manifest.spans)
        places = [self._place(shard) for shard in self.manifest.shards]
        infos = self._filesystem.get_file_info(places)
        for shard, place, info in zip(self.manifest.shards, places, infos, strict=True):
            if info.type != pafs.FileType.File:
                raise self._damaged(shard, "the file is missing")
            if info.size != shard.size:
                raise self._damaged(shard, f"it has {info.size} bytes, not {shard.size}")
            try:
                with pq.ParquetFile(place, filesystem=self._filesystem) as parquet:
                    rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
            except (OSError, pa.ArrowException) as error:
                raise self._damaged(shard, _brief(error)) from None
            if rows != shard.rows:
                raise self._damaged(shard, f"it has {rows} rows, not {shard.rows}")
            if not schema.equals(expected):
                raise self._damaged(shard, "its columns are not those of the manifest")

    def _place(self, shard: Shard) -> str:
        try:
            return _place(self._filesystem, self._root, shard.path)
        except UnsafePathError as error:
            raise self._damaged(shard, str(error)) from None

    def _damaged(self, shard: File, what: str) -> UserError:
        """The error for an unreadable file, which `phf retag` may just have replaced."""
        try:
            newest = _read_manifest(self.uri, self._filesystem, self._root).generation
        except UserError:
            newest = self.manifest.generation
        if newest != self.manifest.generation:
            return UserError(
                f"{self.uri} was retagged (generation {newest}) while generation {self.manifest.generation} was "
                "being read. Start again to read the new one."
            )
        return DamagedError(
            f"{self.uri}/{shard.path} is damaged: {what}. Run `{phf('verify', self.uri)}` to find all damage."
        )


def open_dataset(uri: str) -> LabelledDataset:
    """Open a labelled dataset and check its shards against its manifest (sizes and footers, not hashes).

    Args:
        uri: a local folder, or a URI with file://, s3://, gs://, az:// or hdfs://.

    Raises:
        DamagedError: the manifest is damaged, or shards do not match it.
        UserError: the location does not exist, has no sealed manifest, or has another schema version.
    """
    filesystem, root = _locate(uri)
    dataset = LabelledDataset(uri, _read_manifest(uri, filesystem, root), filesystem, root)
    dataset.check()
    return dataset


def _locate(uri: str) -> tuple[pafs.FileSystem, str]:
    refuse_secret(uri, "dataset")
    scheme, separator, rest = uri.partition("://")
    try:
        if scheme == "az":
            filesystem, root = _azure(), rest
        elif separator:
            filesystem, root = pafs.FileSystem.from_uri(uri)
        else:
            filesystem, root = pafs.LocalFileSystem(), uri
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"Cannot open {uri}: {_brief(error)}.") from None
    return filesystem, root.rstrip("/")


def _azure() -> pafs.FileSystem:
    # pyarrow uses other URIs for Azure (abfs://) than obstore, which wrote the dataset; use obstore's variables.
    account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    if not account:
        raise UserError("az:// needs the environment variable AZURE_STORAGE_ACCOUNT_NAME.")
    return pafs.AzureFileSystem(account_name=account, account_key=os.environ.get("AZURE_STORAGE_ACCOUNT_KEY"))


def _read_manifest(uri: str, filesystem: pafs.FileSystem, root: str) -> Manifest:
    try:
        with filesystem.open_input_stream(_place(filesystem, root, MANIFEST_NAME)) as stream:
            text = stream.read()
    except (FileNotFoundError, NotADirectoryError):
        infos = dict(
            zip(("", "job/", "units/"), filesystem.get_file_info([root, f"{root}/job", f"{root}/units"]), strict=True)
        )
        raise no_manifest(uri, [name for name, info in infos.items() if info.type != pafs.FileType.NotFound]) from None
    except UnsafePathError as error:
        raise DamagedError(f"{uri}/{MANIFEST_NAME} is damaged: {error}.") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"Cannot read {uri}/{MANIFEST_NAME}: {_brief(error)}.") from None
    return parse_manifest(text, f"{uri}/{MANIFEST_NAME}")


def _place(filesystem: pafs.FileSystem, root: str, path: str) -> str:
    """The path of a file of the dataset. On local disks no link is allowed below the root, which may itself be one.

    Raises:
        UnsafePathError: there is a link.
    """
    return str(place_below(Path(root), path)) if isinstance(filesystem, pafs.LocalFileSystem) else f"{root}/{path}"


def _brief(error: Exception) -> str:
    """The first line of pyarrow's message; the rest names pyarrow's source files."""
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__
