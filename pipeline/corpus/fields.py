"""A look into the inputs before any work: a text field that no record has is a mistyped name."""

import json
from collections.abc import Sequence
from itertools import islice

from pipeline.config import LabelConfig
from pipeline.corpus.inputs import Source, cannot_read
from pipeline.corpus.parquet_rows import ParquetRows
from pipeline.corpus.streams import CutError, Decompressed, SourceFile, read_lines
from scorers.errors import UserError

_SAMPLE = 100


def check_fields(sources: Sequence[Source], config: LabelConfig) -> None:
    """Refuse a text field that a Parquet file lacks, or that none of the first records of any `.jsonl` input has.

    Raises:
        UserError: names the field and those that there are.
    """
    fields: dict[str, None] = {}
    for source in sources:
        if source.format == "parquet":
            try:
                ParquetRows(source, config).close()
            except CutError:
                continue
            except OSError as error:
                raise UserError(cannot_read(source.uri, error)) from None
        elif source.format == "jsonl" and config.text_field not in fields:
            for record in _first_objects(source, config):
                fields.update(dict.fromkeys(record))
                if config.text_field in fields:
                    break
    if fields and config.text_field not in fields:
        there = ", ".join(repr(field)[:40] for field in list(fields)[:20])
        raise UserError(
            f"No record has the field {config.text_field!r}; the first ones have: {there}. "
            "Name the field of the text by --text-field."
        )


def _first_objects(source: Source, config: LabelConfig) -> list[dict[str, object]]:
    stream = SourceFile(source) if source.compression is None else Decompressed(source)
    found = []
    try:
        for _, _, content in islice(read_lines(stream, limit=config.max_record_size), _SAMPLE):
            try:
                record = json.loads(content or b"")
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                found.append(record)
    except CutError:
        return found
    except OSError as error:
        raise UserError(cannot_read(source.uri, error)) from None
    finally:
        stream.close()
    return found
