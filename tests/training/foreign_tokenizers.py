"""Small tokenizers of every common kind: byte-level, SentencePiece, WordPiece."""

import json
import string

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    '"""Module."""\n\n\ndef add(first, second):\n    total = first + second\n    return total\n',
    "The old table opens a window. Is it a nice day?  It is!\nYes. ",
    "Grüße an alle. An emoji 😀 too.",
] * 3
BYTES = [f"<0x{number:02X}>" for number in range(256)]


def _fast(backend, **special):
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)


def byte_level(*, prefix=False, add=None, bos="<s>"):
    """Like GPT-2's, or RoBERTa's with a prefix; `add` is a template such as `<s> $A`, like Llama 3's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    _train(backend, trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet))
    if add is not None:
        tokens = [("<s>", 0), ("</s>", 1)]
        backend.post_processor = processors.TemplateProcessing(single=add, pair=f"{add} $B", special_tokens=tokens)
    return _fast(backend, eos_token="</s>", **({"bos_token": bos} if bos else {}))


def llama(*, metaspace=None):
    """SentencePiece's BPE with byte fallback; the prefix comes from a normaliser, as in Llama 2, or from Metaspace."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    split = pre_tokenizers.Split("▁", "merged_with_next")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = split
    special = ["<unk>", "<s>", "</s>", *BYTES]
    _train(backend, trainers.BpeTrainer(vocab_size=420, special_tokens=special))
    state = json.loads(backend.to_str())
    state["added_tokens"] = [each for each in state["added_tokens"] if each["content"] not in BYTES]
    state["pre_tokenizer"] = None
    if metaspace is not None:
        state["normalizer"] = None
        state["pre_tokenizer"] = {
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": metaspace, "split": False,
        }  # fmt: skip
    backend = Tokenizer.from_str(json.dumps(state))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _fast(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram(*, words=False, normalizer=None, alphabet=string.ascii_letters):
    """SentencePiece's unigram model like T5's; with `words` it drops white space."""
    backend = Tokenizer(models.Unigram())
    space = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space]) if words else space
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=["<unk>", "</s>"],
        unk_token="<unk>",
        initial_alphabet=list(alphabet),
        show_progress=False,
    )
    _train(backend, trainer)
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return _fast(backend, eos_token="</s>", unk_token="<unk>")


def unigram_with_bytes():
    """SentencePiece's unigram model with byte fallback, whose vocabulary contains the names of its special tokens."""
    state = json.loads(unigram().backend_tokenizer.to_str())
    state["model"]["vocab"] += [[each, -20.0] for each in BYTES]
    state["model"]["byte_fallback"] = True
    backend = Tokenizer.from_str(json.dumps(state))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _fast(backend, eos_token="</s>", unk_token="<unk>")


def word_level(eos):
    """Whole words, one of which is the end-of-text token."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, eos: 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _fast(backend, eos_token=eos, unk_token="<unk>")


def word_piece(*, lowercase=True):
    """Like BERT's."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    _train(backend, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False))
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return _fast(backend, eos_token="[SEP]", unk_token="[UNK]")


def _train(backend, trainer):
    trainer.show_progress = False
    backend.train_from_iterator(TEXTS, trainer)
