"""Check the configured field names against the inputs before any work, so that a mistyped name fails at once."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pyarrow as pa

from pipeline.config import LabelConfig, given_fields, language_fields, read_fields
from pipeline.corpus.arrow_json import is_list, plain_type
from pipeline.corpus.arrow_rows import ArrowRows
from pipeline.corpus.beginnings import check_beginnings
from pipeline.corpus.compression import CutError
from pipeline.corpus.inputs import Source, cannot_read
from pipeline.corpus.parquet_rows import ParquetRows
from pipeline.corpus.streams import open_content, read_lines
from scorers.errors import UserError

_SAMPLE = 100


def check_fields(sources: Sequence[Source], config: LabelConfig, named: Mapping[str, str] | None = None) -> None:
    """Refuse a field that a Parquet or Arrow file lacks, or that none of the first records of `.jsonl` inputs has.

    The fields are the text field, those from which scorers take their scores, and those that options have `named`, by
    option. `check_beginnings` runs first.

    Raises:
        UserError: a field is missing; the message names the fields that exist.
    """
    check_beginnings(sources, config)
    named = named or {}
    wanted = {config.text_field, *read_fields(config), *named.values()}
    fields: dict[str, None] = {}
    for source in sources:
        if source.format == "jsonl" and not wanted <= fields.keys():
            for record in _first_objects(source, config):
                fields.update(dict.fromkeys(record))
                if wanted <= fields.keys():
                    break
        elif source.format in {"parquet", "arrow"}:
            with _refuse_unreadable(source):
                _open_rows(source, config).close()
    there = ", ".join(repr(field)[:40] for field in list(fields)[:20])
    if fields and config.text_field not in fields:
        raise UserError(
            f"No record has the field {config.text_field!r}; the first ones have: {there}. "
            "Name the text field with --text-field."
        )
    for column, field in given_fields(config).items():
        if fields and field not in fields:
            raise UserError(
                f"No record has the field {field!r}, from which the scorer of {column!r} takes its scores; the first "
                f"ones have: {there}."
            )
    for column, field in language_fields(config).items():
        if fields and field not in fields:
            raise UserError(
                f"No record has the field {field!r} with its language, which scorers.{column}.languages needs; the "
                f"first ones have: {there}. Name the field with scorers.{column}.language_field."
            )
        if any(source.format == "text" for source in sources):
            raise UserError(
                f"scorers.{column}.languages needs a field with the language of a document, and files that are one "
                "document each have no fields. Give JSON lines, Parquet or Arrow files."
            )
    for option, field in named.items():
        if fields and field not in fields:
            raise UserError(f"No record has the field {field!r} of {option}; the first ones have: {there}.")


def settle_sentences(sources: Sequence[Source], config: LabelConfig, before: str | None = None) -> LabelConfig:
    """Return the configuration with `sentences: auto` resolved by the first record that has the text field.

    A choice made when the job began, `before`, is kept.

    Raises:
        UserError: an input cannot be read.
    """
    if config.sentences != "auto":
        return config
    if before is None:
        found = next((each for source in sources if (each := _gives_sentences(source, config)) is not None), False)
        before = "given" if found else "split"
    return config.model_copy(update={"sentences": before})


def _gives_sentences(source: Source, config: LabelConfig) -> bool | None:
    """Whether the text field holds a list; None if this input does not show it."""
    if source.format in {"parquet", "arrow"}:
        with _refuse_unreadable(source):
            rows = _open_rows(source, config)
            try:
                return _type_gives_sentences(rows.schema, config.text_field)
            finally:
                rows.close()
    if source.format == "jsonl":
        for record in _first_objects(source, config):
            if record.get(config.text_field) is not None:
                return isinstance(record[config.text_field], list)
    return None


def _type_gives_sentences(schema: pa.Schema, field: str) -> bool | None:
    kind = plain_type(schema.field(field).type) if field in schema.names else pa.null()
    return None if pa.types.is_null(kind) else is_list(kind)


def _open_rows(source: Source, config: LabelConfig) -> ParquetRows | ArrowRows:
    return ParquetRows(source, config) if source.format == "parquet" else ArrowRows(source, config)


def _first_objects(source: Source, config: LabelConfig) -> Iterator[dict[str, Any]]:
    with _refuse_unreadable(source):
        stream = open_content(source)
        try:
            for _, _, content in islice(read_lines(stream, limit=config.max_record_size), _SAMPLE):
                try:
                    record = json.loads(content or b"")
                except (ValueError, RecursionError):
                    continue
                if isinstance(record, dict):
                    yield record
        finally:
            stream.close()


@contextmanager
def _refuse_unreadable(source: Source) -> Iterator[None]:
    """Ignore damage, which is handled later; refuse an input that cannot be read."""
    try:
        yield
    except CutError:
        return
    except OSError as error:
        raise UserError(cannot_read(source.uri, error)) from None
