"""A small language model of texts of five words."""

from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from training.evaluation.generating import Writer, open_writer

WORDS = 5


def folder_of_words(folder: Path, seed: int) -> Path:
    """A Hugging Face folder with a model that has random weights; its words are a to e, and token 0 ends a text."""
    words = {"<|endoftext|>": 0} | {chr(ord("a") + word): 1 + word for word in range(WORDS)}
    backend = Backend(models.WordLevel(words, unk_token="<|endoftext|>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=1 + WORDS, n_embd=16, n_layer=1, n_head=2, n_positions=8, initializer_range=0.5,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def tiny_writer(folder: Path, seed: int) -> Writer:
    """The loaded model."""
    return open_writer(folder_of_words(folder, seed), "cpu")
