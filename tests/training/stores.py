"""Token stores for tests, written array by array, without a dataset or a tokenizer."""

import numpy as np

from training.data.arrays import write_array
from training.data.store import META_NAME, StoreMeta, TokenStore


def make_store(folder, documents, *, hashes=None, text_bytes=None, column="x"):
    """Write a store of documents: each a list of (token ids, score) sentences, and whether its score is null."""
    folder.mkdir()
    sentences = [sentence for document, _ in documents for sentence in document]
    null = np.array([is_null for _, is_null in documents], dtype=bool)
    counts = np.array([len(document) for document, _ in documents], dtype=np.int64)
    scores = np.array([score for _, score in sentences], dtype=np.float32)
    scores[np.repeat(null, counts)] = np.nan
    means = [float("nan") if is_null else float(np.mean([s for _, s in doc] or [0.0])) for doc, is_null in documents]
    arrays = {
        "tokens": np.array([token for tokens, _ in sentences for token in tokens], dtype=np.uint16),
        "sentence_offsets": _offsets([len(tokens) for tokens, _ in sentences]),
        "document_offsets": _offsets(counts),
        "text_hashes": np.array(hashes if hashes is not None else range(1, len(documents) + 1), dtype=np.uint64),
        "text_bytes": np.array(text_bytes if text_bytes is not None else [0] * len(documents), dtype=np.int64),
        f"scores.{column}": scores,
        f"means.{column}": np.array(means, dtype=np.float64),
    }
    for name, array in arrays.items():
        write_array(folder / f"{name}.arrow", array)
    meta = StoreMeta(
        key="key",
        dataset="dataset",
        tokenizer="tokenizer",
        tokenizer_name="tokenizer",
        created_by="tests",
        columns=[column],
        documents=len(documents),
        sentences=len(sentences),
        tokens=len(arrays["tokens"]),
        text_bytes=int(arrays["text_bytes"].sum()),
        files={path.name: path.stat().st_size for path in folder.iterdir()},
    )
    (folder / META_NAME).write_text(meta.model_dump_json())
    return TokenStore.open(folder)


def _offsets(counts):
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def byte_tokenizer(texts=(), *, eos="<|endoftext|>", vocab_size=300, padding=None):
    """Train a Hugging Face byte-level BPE tokenizer on a few texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[each for each in (eos, padding) if each],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    named = {"eos_token": eos, "pad_token": padding}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{name: each for name, each in named.items() if each})
