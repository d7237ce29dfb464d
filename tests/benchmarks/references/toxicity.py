"""Toxicity as the paper's scripts compute it: Detoxify's own `predict`, on batches of 512 sentences in corpus order.

The checkpoints have random weights: they show speed and agreement, not what is toxic.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH = 512

CLASSES = [
    "toxicity",
    "severe_toxicity",
    "obscene",
    "identity_attack",
    "insult",
    "threat",
    "sexual_explicit",
    *("male", "female", "homosexual_gay_or_lesbian", "christian", "jewish", "muslim", "black", "white"),
    "psychiatric_or_mental_illness",
]

_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]

# The size of the published embedding table, which may be larger than the vocabulary of a tokenizer trained here.
_VOCABULARY = 50_265
# Learnt from two megabytes: 1.5 tokens per word, about as many as RoBERTa's tokenizer needs for web text.
_LEARNT = 16_000


def make_checkpoint(folder: Path, texts: Iterable[str], *, layers: int = 12, seed: int = 7) -> Path:
    """Write a checkpoint in Detoxify's format of a RoBERTa of base size with random weights, and return its path.

    Args:
        folder: where the configuration, the tokenizer and `model.ckpt` are written.
        texts: training data of the tokenizer, a byte-level BPE.
        layers: 12 is the true size; fewer keep the width, and so the work per layer.
        seed: of the weights.
    """
    import tokenizers
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=_LEARNT, show_progress=False, special_tokens=_SPECIAL)
    bpe.save_model(str(folder))
    # Without it Detoxify's tokenizer does not truncate, and the model fails past 512 tokens.
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 512}))
    config = transformers.RobertaConfig(
        vocab_size=_VOCABULARY,
        max_position_embeddings=514,
        type_vocab_size=1,
        num_labels=len(CLASSES),
        num_hidden_layers=layers,
    )
    config.save_pretrained(folder)
    torch.manual_seed(seed)
    model = transformers.RobertaForSequenceClassification(config)
    with torch.no_grad():
        # Larger weights, so that attention and scores differ from sentence to sentence, as in a trained model.
        model.classifier.out_proj.weight.normal_(0, 0.2)
        for layer in model.roberta.encoder.layer:
            for linear in (layer.attention.self.query, layer.attention.self.key):
                linear.weight.normal_(0, 0.05)
    arguments = {
        "num_classes": len(CLASSES),
        # Detoxify's loader only finds a configuration without the hub if the checkpoint names its folder.
        "model_type": str(folder),
        "model_name": "RobertaForSequenceClassification",
        "tokenizer_name": "RobertaTokenizer",
    }
    stored = {"arch": {"args": arguments}, "dataset": {"args": {"classes": CLASSES}}}
    path = folder / "model.ckpt"
    torch.save({"config": stored, "state_dict": model.state_dict()}, path)
    return path


def load(checkpoint: Path) -> Any:
    """The `detoxify.Detoxify` of a checkpoint that `make_checkpoint` wrote."""
    import detoxify

    return detoxify.Detoxify(checkpoint=str(checkpoint))


def scores(model: Any, sentences: Sequence[str], batch: int = BATCH) -> NDArray[np.float32]:
    """The toxicity of each sentence, [n_sentences], by `predict` on batches in the given order."""
    found: list[float] = []
    for start in range(0, len(sentences), batch):
        predicted = model.predict(list(sentences[start : start + batch]))["toxicity"]
        # For a list of one, `predict` returns a number.
        found += [predicted] if isinstance(predicted, float) else predicted
    return np.array(found, dtype=np.float32)


def padded_tokens(model: Any, sentences: Sequence[str], batch: int = BATCH) -> tuple[int, int]:
    """The number of tokens, including special ones, and of positions that `scores` computes for them."""
    lengths = [len(ids) for ids in model.tokenizer(list(sentences), truncation=True)["input_ids"]]
    batches = [lengths[start : start + batch] for start in range(0, len(lengths), batch)]
    return sum(lengths), sum(len(each) * max(each) for each in batches)
