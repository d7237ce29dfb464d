"""Decode Arrow record batches into records, for Parquet and Arrow files alike."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.config import LabelConfig
from pipeline.corpus.arrow_json import is_bytes, is_list, is_text, json_values, plain, plain_type, utf8
from pipeline.corpus.decoding import INVALID_UTF8, Decoder
from pipeline.corpus.inputs import Source
from pipeline.corpus.records import Quarantined, Record
from scorers.errors import UserError


class RowDecoder(Decoder):
    """Decodes record batches of one source.

    Attributes:
        columns: names of the columns to read, None for all.

    Raises:
        UserError: there are rows, and the text column is missing or holds neither strings nor lists of strings, or a
            column that `meta_fields` or a scorer names is missing.
    """

    def __init__(self, source: Source, schema: pa.Schema, config: LabelConfig, *, has_rows: bool = True) -> None:
        super().__init__(source, config)
        self.columns = self._needed(schema, config) if has_rows else None

    def text_bytes(self, batch: pa.RecordBatch) -> int:
        """The size of a batch's text column in memory, in bytes."""
        return int(batch.column(batch.schema.get_field_index(self.text_field)).nbytes)

    def decode(self, start: int, batch: pa.RecordBatch) -> Iterator[Record | Quarantined]:
        """Decode a batch whose first row is row `start` of the source."""
        at = batch.schema.get_field_index(self.text_field)
        wanted = [each for each, name in enumerate(batch.schema.names) if self.columns is None or name in self.columns]
        others = {batch.schema.names[each]: json_values(batch.column(each)) for each in wanted if each != at}
        for row, (content, value) in enumerate(_texts(batch.column(at))):
            position = start + row
            if content is not None and len(content) > self.limit:
                yield self.too_large(position)
                continue
            try:
                text = content.decode() if value is None and content is not None else value
            except UnicodeDecodeError as error:
                detail = f"at byte {error.start} of the field {self.text_field!r}"
                yield self.quarantined(position, INVALID_UTF8, detail, content)
                continue
            fields = {name: values[row] for name, values in others.items()}
            yield self.from_fields(position, {**fields, self.text_field: text}, content)

    def _needed(self, schema: pa.Schema, config: LabelConfig) -> list[str] | None:
        uri, text = self._source.uri, config.text_field
        there = ", ".join(dict.fromkeys(schema.names))
        if (count := len(schema.get_all_field_indices(text))) != 1:
            what = f"has {count} columns named" if count else "has no column"
            raise UserError(f"{uri} {what} {text!r}; it has: {there}. Name the text column with --text-field.")
        kind = schema.field(text).type
        if not _holds_text(kind):
            raise UserError(
                f"The column {text!r} of {uri} holds {kind}, not strings; it has: {there}. "
                "Name the text column with --text-field."
            )
        for column, field in self.given_fields.items():
            if field not in schema.names:
                raise UserError(
                    f"{uri} has no column {field!r}, from which the scorer of {column!r} takes its scores; it has: "
                    f"{there}."
                )
        for column, field in self.language_fields.items():
            if field not in schema.names:
                raise UserError(
                    f"{uri} has no column {field!r} with the language of a document, which scorers.{column}.languages "
                    f"needs; it has: {there}. Name the column with scorers.{column}.language_field."
                )
        if config.meta_fields is None:
            return None
        if missing := [field for field in config.meta_fields if field not in schema.names]:
            raise UserError(f"{uri} has no column {missing[0]!r}, which meta_fields names; it has: {there}.")
        identity = [config.id_field] if config.id_field in schema.names else []
        return list(dict.fromkeys([text, *identity, *config.meta_fields, *self.given_names]))


def _texts(column: pa.Array) -> Iterator[tuple[bytes | None, list[Any] | None]]:
    """Yield the bytes of each text, not checked to be UTF-8, and its list of sentences if the column holds lists."""
    if not is_list(plain_type(column.type)):
        yield from ((content, None) for content in utf8(plain(column)))
        return
    for sentences in json_values(column):
        joined = None if sentences is None else "".join(each for each in sentences if each is not None)
        yield None if joined is None else joined.encode(errors="surrogateescape"), sentences


def _holds_text(kind: pa.DataType) -> bool:
    """Whether the type is text, bytes or lists of text. Writers give a column of nulls the type null."""
    kind = plain_type(kind)
    if is_list(kind):
        kind = plain_type(kind.value_type)
        return pa.types.is_null(kind) or is_text(kind)
    return pa.types.is_null(kind) or is_text(kind) or is_bytes(kind)
