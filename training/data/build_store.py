"""Build a token store from a labelled dataset, in constant memory, on all cores."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset import LabelledDataset
from pipeline.dataset.derived import dataset_identity, derived_place, digest
from scorers.errors import UserError
from scorers.shell import phf
from training.data.arrays import ArrayWriter
from training.data.cache import build_once
from training.data.store import META_NAME, STORE_VERSION, StoreMeta, TokenStore
from training.data.texts import Texts, read_texts
from training.data.tokenizers import Tokenizer

# Concurrent calls to the tokenizer: one computes while the results of another are copied.
_CALLS = 2

Progress = Callable[[int, int], None]


def ensure_store(
    dataset: LabelledDataset, tokenizer: Tokenizer, folder: Path | None = None, progress: Progress | None = None
) -> TokenStore:
    """Open the token store of a dataset and a tokenizer; build it if it is missing.

    Retagging a dataset keeps its store, because a store holds no thresholds or tags. One process per machine builds it,
    in a temporary folder that is then renamed; other processes wait.

    Args:
        dataset: a sealed dataset.
        tokenizer: encodes each sentence alone; a document's first sentence may get a prefix space.
        folder: of the store; None for a folder named by its key, beside a local dataset or in the user's cache.
        progress: called with rows tokenised and the total.

    Raises:
        UserError: the folder holds the store of another tokenizer or dataset, or something else, is damaged, or cannot
            be written; or the dataset is damaged.
    """
    identity = dataset_identity(dataset.manifest)
    key = store_key(identity, tokenizer)
    place = folder if folder is not None else derived_place(dataset.uri, key)
    if place.exists() and not (place / META_NAME).exists():
        raise UserError(f"{place} exists, but is not a token store. Choose another --store (data.store), or delete it.")
    build_once(place, lambda target: _build(dataset, tokenizer, identity, target, progress))
    store = TokenStore.open(place)
    if store.meta.tokenizer != tokenizer.fingerprint:
        raise UserError(
            f"The token store {place} was made with another tokenizer ({store.meta.tokenizer_name}) than "
            f"{tokenizer.name}. Use that tokenizer, choose another --store (data.store), or delete the folder."
        )
    if store.meta.key != key:
        raise UserError(
            f"The token store {place} was made from another dataset than {dataset.uri}, or from other scores. "
            "Choose another --store (data.store), or delete the folder."
        )
    return store


def store_key(identity: str, tokenizer: Tokenizer) -> str:
    """Return the name of a store: a hash of the dataset's identity and the tokenizer's fingerprint."""
    return digest([STORE_VERSION, identity, tokenizer.fingerprint])


def _build(
    dataset: LabelledDataset, tokenizer: Tokenizer, identity: str, folder: Path, progress: Progress | None
) -> None:
    columns = dataset.columns
    offset = np.zeros(1, dtype=np.int64)
    sentences = tokens = documents = text_bytes = 0
    with ExitStack() as stack:
        arrays = {
            name: stack.enter_context(ArrayWriter(folder / f"{name}.arrow", dtype))
            for name, dtype in _dtypes(columns, tokenizer).items()
        }
        arrays["sentence_offsets"].append(offset)
        arrays["document_offsets"].append(offset)

        def add_tokens(ids: NDArray[np.uint32], lengths: NDArray[np.int64]) -> None:
            nonlocal tokens
            arrays["tokens"].append(ids)
            arrays["sentence_offsets"].append(tokens + np.cumsum(lengths))
            tokens += len(ids)

        executor = ThreadPoolExecutor(_CALLS)
        stack.callback(executor.shutdown, cancel_futures=True)
        calls: deque[Future[tuple[NDArray[np.uint32], NDArray[np.int64]]]] = deque()
        for texts in read_texts(dataset, columns):
            _add_documents(arrays, texts, sentences, dataset)
            for sentence_list, first in texts.sentence_lists():
                if len(calls) > _CALLS:
                    add_tokens(*calls.popleft().result())
                calls.append(executor.submit(tokenizer.encode, sentence_list, first))
            documents += len(texts)
            sentences += int(texts.sentence_counts.sum())
            text_bytes += int(texts.text_bytes.sum())
            if progress is not None:
                progress(documents, dataset.manifest.rows)
        while calls:
            add_tokens(*calls.popleft().result())
    meta = StoreMeta(
        key=store_key(identity, tokenizer),
        dataset=identity,
        tokenizer=tokenizer.fingerprint,
        tokenizer_name=tokenizer.name,
        created_by=_created_by(),
        columns=columns,
        documents=documents,
        sentences=sentences,
        tokens=tokens,
        text_bytes=text_bytes,
        files={path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    )
    (folder / META_NAME).write_text(meta.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _dtypes(columns: list[str], tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "tokens": np.uint16 if tokenizer.base_size <= 1 << 16 else np.uint32,
        "sentence_offsets": np.int64,
        "document_offsets": np.int64,
        "text_hashes": np.uint64,
        "text_bytes": np.int64,
        **{f"scores.{column}": np.float32 for column in columns},
        **{f"means.{column}": np.float64 for column in columns},
    }


def _add_documents(arrays: dict[str, ArrayWriter], texts: Texts, sentences: int, dataset: LabelledDataset) -> None:
    arrays["document_offsets"].append(sentences + np.cumsum(texts.sentence_counts))
    arrays["text_hashes"].append(texts.hashes)
    arrays["text_bytes"].append(texts.text_bytes)
    for column in dataset.columns:
        try:
            scores, means = texts.scores(column)
        except ValueError as error:
            raise UserError(
                f"{dataset.uri} is damaged in column {column}: {error}. Run `{phf('verify', dataset.uri)}`."
            ) from None
        arrays[f"scores.{column}"].append(scores)
        arrays[f"means.{column}"].append(means)


def _created_by() -> str:
    try:
        return f"phf {version('phf')}"
    except PackageNotFoundError:
        return "phf"
