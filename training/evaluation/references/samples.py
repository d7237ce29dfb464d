"""Samples of a reference with their log-probabilities: drawn from a model or an endpoint, or read from a file."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.dataset.derived import digest, user_cache
from pipeline.dataset.writer import parquet_writer
from scorers.amounts import format_count
from scorers.errors import UserError
from scorers.records import Record, read_records
from scorers.settings import describe_first_error
from training.disk import write_atomically
from training.evaluation.references.text_model import TextModel, Texts
from training.measuring_config import EvaluationConfig
from training.model.sampling import sample

_REVISION = 1  # raise it when samples of the same settings change
_BLOCK = 256  # samples of an endpoint that an interruption loses at most

_SCHEMA = pa.schema(
    [
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("ids", pa.list_(pa.int32()), nullable=False),
        pa.field("ended", pa.bool_(), nullable=False),
        pa.field("log_prob", pa.float64(), nullable=False),
    ]
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ReferenceSamples:
    """Samples of a reference.

    Attributes:
        texts: the samples.
        nats: float64 [n], log p_ref of each, with EOS if it ended.
        max_tokens: the limit in force; None for a file.
    """

    texts: Texts
    nats: NDArray[np.float64]
    max_tokens: int | None


class StoredSample(BaseModel):
    """A record of a file of samples. Other fields are ignored.

    Attributes:
        text: the sample.
        log_prob: natural logarithm of its probability; far below -1e9 is no text's, and sums would overflow.
        ended: whether the text ended by itself and `log_prob` counts that; else it was cut.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    text: str
    log_prob: Annotated[float, Field(ge=-1e9, le=0, allow_inf_nan=False)]
    ended: bool = False


_SAMPLE = TypeAdapter(StoredSample)


def draw_once(
    open_model: Callable[[], TextModel], state: str, config: EvaluationConfig, progress: Progress | None = None
) -> ReferenceSamples:
    """Draw samples of a model at temperature 1, or read them from the user's cache if they were drawn before.

    Args:
        open_model: loads the model; not called if they were.
        state: fingerprint of the model.
        config: `reference_samples`, `reference_tokens`, `batch_size` and `seed`.
        progress: called with the samples drawn and the total.
    """
    place = _cached(state, config, 0, config.reference_samples)
    found = _read_cached(place, config.reference_samples)
    if found is not None:
        return found
    model = open_model()
    law = model.law
    drawn = sample(
        model.model,
        eos_id=law.eos_id,
        prompt_ids=law.prompt_ids,
        banned_ids=law.banned_ids,
        config=config.model_copy(
            update={"temperature": 1.0, "top_p": 1.0, "max_new_tokens": config.reference_tokens, "guidance": 1.0}
        ),
        seed=config.seed,
        vocab_size=law.vocab_size,
        context_length=law.context_length,
        num_samples=config.reference_samples,
        progress=progress,
    )
    texts = Texts(model.decode(drawn.ids), drawn.ids, drawn.ended, model.vocabulary)
    samples = ReferenceSamples(texts, model.measure(texts).likelihood.nats, drawn.max_new_tokens)
    _write_cached(place, samples)
    return samples


def draw_in_blocks(
    draw: Callable[[int, int, Progress], ReferenceSamples],
    state: str,
    config: EvaluationConfig,
    progress: Progress | None = None,
) -> ReferenceSamples:
    """Draw samples in blocks that are kept in the user's cache, so that an interruption loses one block at most.

    Args:
        draw: draws a block: the number of its first sample, its samples, and a function for its progress.
        state: fingerprint of what they are drawn from.
        config: as for `draw_once`.
        progress: called with the samples drawn and the total.
    """
    total, blocks = config.reference_samples, []
    for first in range(0, total, _BLOCK):
        number = min(_BLOCK, total - first)
        place = _cached(state, config, first, number)
        block = _read_cached(place, number)
        if block is None:
            block = draw(first, number, partial(_show, progress, first, total))
            _write_cached(place, block)
        blocks.append(block)
    texts = Texts(
        [text for block in blocks for text in block.texts.texts],
        None,
        [ended for block in blocks for ended in block.texts.ended],
        None,
    )
    return ReferenceSamples(texts, np.concatenate([block.nats for block in blocks]), blocks[0].max_tokens)


def read_samples(path: Path, most: int) -> ReferenceSamples:
    """Read the first samples of a JSON Lines, CSV or Parquet file with `text`, `log_prob` and, optionally, `ended`.

    Args:
        path: the file; its suffix is the format.
        most: number of samples.

    Raises:
        UserError: it cannot be read, or a sample is not valid; names the record.
    """
    records = read_records(path, "Reference", list(StoredSample.model_fields), texts=["text"], first=most)
    samples = list(map(_sample, records))
    if len(samples) < 2:
        raise UserError(
            f"The reference {path} has {format_count(len(samples), 'sample')}; an estimate needs at least 2."
        )
    texts = Texts([each.text for each in samples], None, [each.ended for each in samples], None)
    return ReferenceSamples(texts, np.array([each.log_prob for each in samples]), None)


def _sample(record: Record) -> StoredSample:
    try:
        return _SAMPLE.validate_python({name: each for name, each in record.values.items() if each is not None})
    except ValidationError as error:
        raise UserError(
            f"{record.where}: {describe_first_error(error)}. Each record needs `text`, `log_prob` (natural logarithm, "
            "at most 0) and may have `ended` (true or false)."
        ) from None


def _show(progress: Progress | None, before: int, total: int, done: int, _: int) -> None:
    if progress is not None:
        progress(before + done, total)


def _cached(state: str, config: EvaluationConfig, first: int, number: int) -> Path:
    of_block = [first] if first else []
    key = digest([_REVISION, state, number, config.reference_tokens, config.seed, *of_block])
    return user_cache() / "references" / f"{key}.parquet"


def _read_cached(place: Path, number: int) -> ReferenceSamples | None:
    try:
        with pq.ParquetFile(place, page_checksum_verification=True) as parquet:
            if not parquet.schema_arrow.equals(_SCHEMA) or parquet.metadata.num_rows != number:
                return None
            metadata = parquet.schema_arrow.metadata or parquet.metadata.metadata or {}
            table = parquet.read()
        vocabulary, limit = metadata[b"vocabulary"].decode(), int(metadata[b"max_tokens"])
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None  # drawn anew
    ids = table["ids"].to_pylist() if vocabulary else None
    texts = Texts(table["text"].to_pylist(), ids, table["ended"].to_pylist(), vocabulary or None)
    return ReferenceSamples(texts, table["log_prob"].to_numpy(), limit)


def _write_cached(place: Path, samples: ReferenceSamples) -> None:
    texts = samples.texts
    ids = [[] for _ in texts.texts] if texts.ids is None else texts.ids
    columns = {"text": texts.texts, "ids": ids, "ended": texts.ended, "log_prob": samples.nats}
    metadata = {"vocabulary": texts.vocabulary or "", "max_tokens": str(samples.max_tokens)}
    table = pa.table(columns, schema=_SCHEMA.with_metadata(metadata))
    sink = io.BytesIO()
    with parquet_writer(sink, table.schema) as writer:
        writer.write_table(table)
    try:
        write_atomically(place, sink.getvalue())
    except OSError:
        return  # a cache that cannot be written only costs time
