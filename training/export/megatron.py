"""Export a labelled dataset for Megatron: token ids as `tokens.bin` and `.idx`, and the loss weight of each beside it.

The tokens are those of the training stream (`training.data.tagged_stream`). Megatron ends documents with EOS, so each
sequence is a document, its BOS first if the tokenizer has one, then EOS: the stream from its second token on.

The bytes follow from the request, so an interrupted export continues behind what it has written for certain.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.derived import dataset_identity, digest
from scorers.errors import UserError
from scorers.stored import read_stored
from training.config import ResolvedConfig
from training.data.prepare import PreparedData, prepare
from training.data.tagged_stream import Stream
from training.data.tokenizers import save_tokenizer
from training.disk import refuse_links, write_atomically
from training.objectives import MLE, OBJECTIVES, Objective, TokenRWR
from training.settings import resolve_config

TOKENS, WEIGHTS, TOKENIZER = "tokens", "weights", "tokenizer"
EXPORT_NAME, PROGRESS_NAME = "export.json", "progress.json"

# Megatron's IndexedDataset: its magic, version 1, and the codes of its element types.
_MAGIC = b"MMIDIDX\x00\x00"
_CODES = {"uint8": 1, "int32": 4, "float32": 7, "uint16": 8}
# From this vocabulary size on Megatron stores int32.
_LARGE_VOCABULARY = 65_500
# Tokens that are read at once, and chunks after which they are synced to the disk.
_CHUNK, _SYNCED = 1 << 18, 64

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Values:
    """An array beside others, one value per token."""

    name: str
    dtype: np.dtype[Any]


def export_megatron(
    dataset: str,
    column: str,
    output: str,
    *,
    tokenizer: str | None,
    objective: str | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the tokens of a dataset and what an objective weights them with; return figures for a report.

    Args:
        dataset: a sealed dataset.
        column: of the scores; also the task, unless a setting names another.
        output: a local folder, which is empty, missing, or holds the unfinished export of the same request.
        tokenizer: as for `phf train`.
        objective: its name; None for mle.
        overrides: settings of `phf train`, as `KEY=VALUE`.
        progress: called with a stage, what is done and the total.

    Raises:
        UserError: a setting, the dataset or the tokenizer cannot be used, the loss of the objective is not a weighted
            cross-entropy, or the output holds something else.
        OSError: the disk failed.
    """
    if "://" in output:
        raise UserError(f"{output}: the format megatron is written to a local folder, as Megatron maps it to memory.")
    if not tokenizer:
        raise UserError("The format megatron needs a tokenizer. Add --tokenizer, a folder or a name on the hub.")
    config = _config(dataset, column, tokenizer, objective, overrides)
    folder = Path(output)
    _refuse_existing(folder)
    prepared = prepare(config, progress)
    request = _request(prepared)
    done = _begin(folder, request)
    stream = Stream(
        prepared.stream.store, prepared.stream.column, replace(prepared.stream.options, context_length=_CHUNK)
    )
    size = prepared.tokenizer.size(prepared.added_ids)
    arrays = [_Values(TOKENS, np.dtype(np.uint16 if size < _LARGE_VOCABULARY else np.int32))]
    if not _is_plain(prepared.objective):
        # A mask needs a byte.
        arrays.append(_Values(WEIGHTS, np.dtype(np.uint8 if isinstance(prepared.objective, MLE) else np.float32)))
    _write_values(folder, arrays, stream, prepared.objective, request, done, progress)
    for each in arrays:
        _write_index(folder / f"{each.name}.idx", each.dtype, stream)
    (folder / TOKENIZER).mkdir(exist_ok=True)
    save_tokenizer(prepared.extended_tokenizer, folder / TOKENIZER)
    files = _files(folder)
    facts = {
        "version": 1,
        "format": "megatron",
        **request,
        "documents": len(stream.documents),
        "tokens": stream.num_tokens,
        "vocab_size": size,
        "eos_id": prepared.tokenizer.eos_id,
        "control_ids": list(prepared.added_ids),
        "stream": {
            name: value
            for name, value in stream.statistics.items()
            if name not in ("context_length", "blocks", "tokens_dropped_at_end")
        },
        "files": files,
    }
    write_atomically(folder / EXPORT_NAME, json.dumps(facts, indent=2) + "\n")
    (folder / PROGRESS_NAME).unlink()
    return {
        "documents": len(stream.documents),
        "sentences": stream.statistics["sentences"],
        "tokens": stream.num_tokens,
        "left_out": stream.statistics["documents_left_out"],
        "files": [*(each["path"] for each in files), EXPORT_NAME],
        "warnings": list(prepared.warnings),
    }


def _config(
    dataset: str, column: str, tokenizer: str, objective: str | None, overrides: Sequence[str]
) -> ResolvedConfig:
    # No blocks are cut here: the least length, so that no dataset is too small for one.
    data = {"dataset": dataset, "column": column, "tokenizer": tokenizer, "context_length": 2}
    flags = {"task": column, "output": "-", "data": data, "objective": {"name": objective}}
    config = resolve_config(None, flags, overrides)
    kind = OBJECTIVES[config.objective.name]
    if not _is_weighted(kind):
        fitting = ", ".join(name for name, each in OBJECTIVES.items() if _is_weighted(each))
        raise UserError(
            f"The loss of the objective {kind.name} is not a cross-entropy with a weight for each token, which is all "
            f"that can be exported. Choose one of: {fitting}."
        )
    if config.data.mixture:
        raise UserError("One dataset is exported at a time: remove data.mixture; Megatron blends several itself.")
    if config.objective.starts_at or config.objective.cooldown:
        raise UserError(
            "The steps without preferences are a matter of the trainer: remove objective.starts_at and cooldown, and "
            "export with the objective mle for those steps."
        )
    return config


def _is_weighted(kind: type[Objective]) -> bool:
    return not (kind.needs_values or kind.needs_unlikelihood or issubclass(kind, TokenRWR))


def _is_plain(objective: Objective) -> bool:
    return isinstance(objective, MLE) and objective.mask is None


def _request(prepared: PreparedData) -> dict[str, Any]:
    """Everything that decides the bytes, as JSON values, and what says so to a reader; no path."""
    options = asdict(prepared.stream.options)
    del options["context_length"]
    return {
        "dataset": dataset_identity(prepared.dataset.manifest),
        "column": prepared.column,
        "scorer": prepared.dataset.manifest.scorers[prepared.column].model_dump(mode="json"),
        "columns": dict(prepared.config.data.columns),
        "tokenizer": prepared.tokenizer.fingerprint,
        "objective": prepared.config.objective.model_dump(mode="json"),
        "layout": json.loads(json.dumps(options)),
        "held_out": {"share": prepared.config.data.held_out, "seed": prepared.config.data.held_out_seed},
    }


def _refuse_existing(folder: Path) -> None:
    refuse_links(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Choose another output.")
    unfinished = (folder / PROGRESS_NAME).is_file() and not (folder / EXPORT_NAME).exists()
    if folder.exists() and any(folder.iterdir()) and not unfinished:
        raise UserError(f"{folder} exists already and is not overwritten. Choose another output, or delete it.")


def _begin(folder: Path, request: dict[str, Any]) -> int:
    """Claim an output for a request; return the tokens that are on its disk for certain."""
    try:
        progress = json.loads(read_stored(folder / PROGRESS_NAME))
        known, tokens = progress["request"], progress["tokens"]
        if not isinstance(tokens, int) or tokens < 0:
            raise ValueError
    except FileNotFoundError:
        _record(folder, request, 0)
        return 0
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / PROGRESS_NAME} is damaged. Delete {folder} and start again.") from None
    if known != digest(request):
        raise UserError(
            f"{folder} holds an unfinished export with other settings, or of the dataset before it changed. Repeat "
            "that command to finish it, choose another output, or delete it."
        )
    return tokens


def _record(folder: Path, request: dict[str, Any], tokens: int) -> None:
    write_atomically(folder / PROGRESS_NAME, json.dumps({"request": digest(request), "tokens": tokens}) + "\n")


def _write_values(
    folder: Path,
    arrays: Sequence[_Values],
    stream: Stream,
    objective: Objective,
    request: dict[str, Any],
    done: int,
    progress: Progress | None,
) -> None:
    paths = [folder / f"{each.name}.bin" for each in arrays]
    for path, each in zip(paths, arrays, strict=True):
        if done and (not path.exists() or path.stat().st_size < done * each.dtype.itemsize):
            done = 0
    files: list[IO[bytes]] = []
    try:
        for path, each in zip(paths, arrays, strict=True):
            files.append(os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666), "r+b"))
            files[-1].seek(done * each.dtype.itemsize)
        for number, (ids, scores) in enumerate(_tokens(stream, done), start=1):
            values: list[NDArray[Any]] = [ids] if len(arrays) == 1 else [ids, _weights(objective, ids, scores)]
            for file, each, value in zip(files, arrays, values, strict=True):
                file.write(value.astype(each.dtype).tobytes())
            done += len(ids)
            if number % _SYNCED == 0:
                _sync(files)
                _record(folder, request, done)
            if progress is not None:
                progress("Writing", done, stream.num_tokens)
        for file in files:
            file.truncate()
        _sync(files)
        _record(folder, request, done)
    finally:
        for file in files:
            file.close()


def _sync(files: Sequence[IO[bytes]]) -> None:
    for file in files:
        file.flush()
        os.fsync(file.fileno())


def _tokens(stream: Stream, done: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield ids and scores of all tokens behind the first `done`: the stream without its first EOS, and one more."""
    if not stream.num_tokens or done >= stream.num_tokens:
        return
    first = done + 1
    for index in range(first // _CHUNK, stream.num_blocks):
        ids, scores = stream.block(index)
        start = max(0, first - index * _CHUNK)
        yield ids[start:], scores[start:]
    # The last partial block, which training drops, a token at a time.
    single = Stream(stream.store, stream.column, replace(stream.options, context_length=1))
    rest = single.blocks(np.arange(max(first, stream.num_blocks * _CHUNK), stream.num_tokens))
    eos = np.array([stream.options.eos_id], dtype=np.int64)
    yield np.append(rest.input_ids.ravel(), eos), np.append(rest.scores.ravel(), np.zeros(1, dtype=np.float32))


def _weights(objective: Objective, ids: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """The factor of each token's -log p in the loss, float32 [n]: the loss where that is 1."""
    import torch

    found = torch.from_numpy(scores)[None]
    terms = objective.counted_terms(torch.from_numpy(ids)[None], torch.ones_like(found), None, found, None)
    weights: NDArray[np.float32] = terms.loss[0].numpy()
    return weights


def _write_index(path: Path, dtype: np.dtype[Any], stream: Stream) -> None:
    starts = stream.document_starts
    with path.open("wb") as file:
        file.write(_MAGIC + struct.pack("<QBQQ", 1, _CODES[dtype.name], len(starts) - 1, len(starts)))
        file.write(np.diff(starts).astype("<i4").tobytes())
        file.write((starts[:-1] * dtype.itemsize).astype("<i8").tobytes())
        file.write(np.arange(len(starts), dtype="<i8").tobytes())
        file.flush()
        os.fsync(file.fileno())


def _files(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(each for each in folder.rglob("*") if each.is_file() and each.name != PROGRESS_NAME):
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        name = path.relative_to(folder).as_posix()
        found.append({"path": name, "size": path.stat().st_size, "sha256": sha256})
    return found
