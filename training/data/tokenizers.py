"""Tokenizers: any fast Hugging Face tokenizer with an end-of-text token, or a byte-level BPE trained on the dataset."""

import copy
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset import LabelledDataset
from pipeline.dataset.derived import TOKENIZER_PREFIX, dataset_identity, derived_place, digest
from pipeline.dataset.hashing import splitmix64, uniform
from scorers import hugging_face
from scorers.errors import UserError
from training.data.cache import build_once
from training.data.conditions import HIDDEN, condition_of, control_name, without_condition
from training.data.index import tag_names
from training.data.texts import Texts, read_texts
from training.data.tokenizer_backends import read_names_as_text, remove_prefix, surrounding_tokens

END_OF_TEXT = "<|endoftext|>"

# Train a tokenizer on at most this much text, in UTF-8 bytes: more takes long and hardly changes the merges.
TRAINING_BYTES = 500_000_000

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Tokenizer:
    """A base tokenizer, which never emits control tokens.

    Attributes:
        name: as the user gave it.
        fast: the Hugging Face tokenizer (`transformers.PreTrainedTokenizerFast`); do not add tokens to it.
        fingerprint: hash of everything that decides how text becomes ids; part of a token store's key.
        base_size: 1 + the largest id that it can emit.
        eos_id: ends every document.
        bos_id: begins every document: the token that the tokenizer itself puts first (Llama, Gemma), else `eos_id`.
    """

    name: str
    fast: Any
    fingerprint: str
    base_size: int
    eos_id: int
    bos_id: int
    _encoder: Any
    # For sentences after a document's first, if the tokenizer adds a prefix space.
    _continuing: Any | None = None

    def size(self, control_ids: Sequence[int] = ()) -> int:
        """Return the number of embedding rows that a model needs with these control tokens."""
        return max(self.base_size, 1 + max(control_ids, default=-1))

    def control_ids(self, classes: int) -> tuple[int, ...]:
        """Return the ids of the control tokens in `with_control_tokens(classes)`, best class first.

        Raises:
            UserError: the tokenizer's ids have a hole, so a control token would get another token's id.
        """
        return _add_control_tokens(copy.deepcopy(self.fast), classes)

    def after_ids(self, classes: int, after: int) -> tuple[int, ...]:
        """Return the ids of the tokens after sentences in `with_control_tokens(classes, after)`, best class first.

        Raises:
            UserError: see `control_ids`.
        """
        return _add_control_tokens(copy.deepcopy(self.fast), classes, after)[classes:]

    def hidden_id(self, classes: int, after: int = 0) -> int:
        """Return the id of `<|hidden|>` in `with_control_tokens(classes, after, hidden=True)`.

        Raises:
            UserError: see `control_ids`.
        """
        return _add_control_tokens(copy.deepcopy(self.fast), classes, after, hidden=True)[-1]

    @property
    def adds_prefix_space(self) -> bool:
        """Whether the tokenizer adds a prefix space, so that a leading space in a text does not change its ids."""
        return self._continuing is not None

    def encode(
        self, sentences: Sequence[str], first: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Tokenise each sentence alone, without special tokens; their names in a text are plain text.

        Uses all cores and releases the GIL.

        Args:
            sentences: of any documents.
            first: bool [len(sentences)], those that begin a document; None for all. Only these get a prefix space if
                the tokenizer adds one, so that the ids of a document's sentences are those of its text.

        Returns:
            uint32 ids of all sentences, concatenated, and int64 [len(sentences)], the number of tokens in each.
        """
        ids = [
            encoding.ids for encoding in self._encodings(sentences, first, lambda encoder: encoder.encode_batch_fast)
        ]
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        total = int(lengths.sum())
        return np.fromiter(itertools.chain.from_iterable(ids), dtype=np.uint32, count=total), lengths

    def spans(self, sentences: Sequence[str], first: NDArray[np.bool_] | None = None) -> list[list[tuple[int, int]]]:
        """Return the span of each token in its sentence: half open, in code points.

        Tokens that are parts of one character have the same span. The arguments are those of `encode`.
        """
        return [each.offsets for each in self._encodings(sentences, first, lambda encoder: encoder.encode_batch)]

    def _encodings(
        self, sentences: Sequence[str], first: NDArray[np.bool_] | None, method: Callable[[Any], Any]
    ) -> list[Any]:
        if self._continuing is None or first is None:
            encodings: list[Any] = method(self._encoder)(list(sentences), add_special_tokens=False)
            return encodings
        encodings = [None] * len(sentences)
        for encoder, chosen in ((self._encoder, first), (self._continuing, ~first)):
            places = np.flatnonzero(chosen).tolist()
            found = method(encoder)([sentences[place] for place in places], add_special_tokens=False)
            for place, encoding in zip(places, found, strict=True):
                encodings[place] = encoding
        return encodings

    def decode(self, ids: Sequence[int] | NDArray[Any]) -> str:
        """Decode a document's ids, all below `base_size`, without the prefix space.

        Special tokens are decoded to their names.
        """
        return self.decode_all([[int(each) for each in ids]])[0]

    def decode_all(self, documents: Sequence[list[int]]) -> list[str]:
        """Decode each document as `decode` does, on all cores."""
        texts: list[str] = self._encoder.decode_batch(list(documents), skip_special_tokens=False)
        # SentencePiece-like decoders strip the prefix space, GPT-2's does not.
        return [text.removeprefix(" ") for text in texts] if self._shows_prefix else texts

    def decode_continuation(self, before: Sequence[int], ids: Sequence[int] | NDArray[Any]) -> str:
        """Decode ids that follow others, including the spaces at the boundary."""
        head, whole = self.decode(before), self.decode([*before, *ids])
        return whole[len(head) :] if whole.startswith(head) else self.decode(ids)

    @cached_property
    def _shows_prefix(self) -> bool:
        if self._continuing is None:
            return False
        text: str = self._encoder.decode(self._encoder.encode("a", add_special_tokens=False).ids)
        return text.startswith(" ")

    def with_control_tokens(self, classes: int = 2, after: int = 0, *, hidden: bool = False) -> Any:
        """Return a copy of `fast` with `<|aligned|>` and `<|misaligned|>`, for a conditional model.

        Args:
            classes: of sentences; with three, the tokens are `<|quantile_1|>` (the best) to `<|quantile_3|>`; 0 for
                none.
            after: classes of sentences with a token after them, `<|after_aligned|>` and so on; 0 for none.
            hidden: add `<|hidden|>`, which stands for tokens that the model must not read.
        """
        extended = copy.deepcopy(self.fast)
        _add_control_tokens(extended, classes, after, hidden=hidden)
        return extended


def load_tokenizer(name_or_path: str) -> Tokenizer:
    """Load a tokenizer from a folder or by its name on the Hugging Face hub.

    Raises:
        UserError: it cannot be found or read, is not of the `tokenizers` library, or has no end-of-text token.
    """
    try:
        fast = hugging_face.load_tokenizer(name_or_path)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever transformers, its hub client or a damaged file raises
        known = Path(name_or_path).exists()
        where = "it does not contain a tokenizer" if known else "there is no such folder, nor one on the hub"
        raise UserError(
            f"Cannot load the tokenizer {name_or_path!r}: {where} ({type(error).__name__}). "
            "Give the folder or the name of a Hugging Face tokenizer, or omit it to have one trained."
        ) from None
    return wrap_tokenizer(name_or_path, fast)


def foreign_control_ids(fast: Any, own: Collection[int]) -> list[int]:
    """Return the ids of control tokens that a run's stream does not use, inherited from a conditional run.

    Args:
        fast: a Hugging Face tokenizer.
        own: ids of the control tokens of the run's own stream.
    """
    known = (number for name, number in fast.get_added_vocab().items() if control_name(name))
    return sorted(set(known) - set(own))


def wrap_tokenizer(name: str, fast: Any) -> Tokenizer:
    """Wrap a Hugging Face tokenizer, without the condition of a `phf export-model --condition`.

    Raises:
        UserError: it is not of the `tokenizers` library, or has no end-of-text token.
    """
    from tokenizers import Tokenizer as Backend

    if not getattr(fast, "is_fast", False):
        raise UserError(f"The tokenizer {name!r} is written in Python; phf needs one with a tokenizer.json.")
    if fast.eos_token_id is None:
        raise UserError(
            f"The tokenizer {name!r} has no end-of-text token (eos_token), which phf needs to end every document. "
            "Choose another, set eos_token in its tokenizer_config.json, or omit data.tokenizer to train one."
        )
    if condition_of(fast) is not None:
        fast = without_condition(fast)
    encoder = Backend.from_str(fast.backend_tokenizer.to_str())
    encoder.no_truncation()
    encoder.no_padding()
    content = f"{encoder.to_str()}\n{fast.eos_token_id}"
    before, _ = surrounding_tokens(encoder)
    if len(before) > 1:
        raise UserError(
            f"The tokenizer {name!r} puts {len(before)} tokens before a text, but phf begins documents with one. "
            "Choose another, or change the post_processor in its tokenizer.json."
        )
    eos_id = int(fast.eos_token_id)
    bos_id = before[0] if before else eos_id
    encoder.encode_special_tokens = True
    try:
        plain = read_names_as_text(encoder)
    except ValueError as error:
        raise UserError(
            f"The tokenizer {name!r} encodes the text {str(error)!r} as its special token of that name, so that a text "
            "could end a document or contain a tag. Choose another."
        ) from None
    encoder = plain or encoder
    continuing = remove_prefix(encoder)
    # Added only where it applies, so that the fingerprints of other tokenizers stay the same.
    content += f"\nbegins with {bos_id}" * (bos_id != eos_id)
    content += "\nno space before later sentences" * (continuing is not None)
    content += "\nnames of tokens are text" * (plain is not None)
    return Tokenizer(
        name=name,
        fast=fast,
        fingerprint=hashlib.sha256(content.encode()).hexdigest()[:32],
        base_size=1 + max(fast.get_vocab().values()),
        eos_id=eos_id,
        bos_id=bos_id,
        _encoder=encoder,
        _continuing=continuing,
    )


def save_tokenizer(fast: Any, folder: Path, context_length: int | None = None) -> None:
    """Write a Hugging Face tokenizer so that transformers 4 and 5 load the same one.

    A specific class may rebuild the contents of `tokenizer.json`, differently in each version; the generic class reads
    them unchanged. Transformers 5 gives it a name that 4 does not know, and writes special tokens in a form that fails
    in 4.

    Args:
        fast: the tokenizer.
        folder: an existing folder.
        context_length: the model's maximum length, which `truncation=True` cuts to.

    Raises:
        OSError: it cannot be written.
    """
    fast.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = {
        name: value
        for name, value in json.loads(file.read_text(encoding="utf-8")).items()
        # Leave out how it was loaded here, and what would override the post-processor of `tokenizer.json`.
        if name not in ("is_local", "local_files_only", "backend", "add_bos_token", "add_eos_token")
    }
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    # Otherwise transformers 4 returns token types too, which GPT-2 adds to its input and other models refuse.
    config["model_input_names"] = ["input_ids", "attention_mask"]
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if context_length is not None:
        config["model_max_length"] = context_length
    pre_tokenizer = json.loads(fast.backend_tokenizer.to_str())["pre_tokenizer"] or {}
    if "add_prefix_space" in pre_tokenizer:
        # Without it transformers 4 adds no space.
        config["add_prefix_space"] = pre_tokenizer["add_prefix_space"]
    file.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def train_tokenizer(
    dataset: LabelledDataset, vocab_size: int, output: Path, progress: Progress | None = None
) -> Tokenizer:
    """Train a byte-level BPE tokenizer on a dataset's sentences and save it as a Hugging Face folder.

    The same texts and size give the same tokenizer, which encodes every text losslessly. If there is more than 500 MB
    of text, it is trained on documents chosen by a hash of their text.

    Args:
        dataset: has the texts.
        vocab_size: entries, including `<|endoftext|>` and the 256 bytes; fewer if the texts contain no more merges.
        output: folder that is created, whole or not at all.
        progress: called with rows read and the total.

    Raises:
        UserError: the folder exists, or cannot be written.
    """
    if os.path.lexists(output):
        raise UserError(f"{output} exists already. Choose another --output, or delete it.")
    build_once(output, lambda folder: save_tokenizer(_train([dataset], vocab_size, progress), folder))
    return load_tokenizer(str(output))


def ensure_tokenizer(
    dataset: LabelledDataset,
    vocab_size: int,
    progress: Progress | None = None,
    *,
    others: Sequence[LabelledDataset] = (),
) -> Tokenizer:
    """Train a tokenizer on a dataset, or load the one cached beside its token stores.

    Args:
        dataset: the main dataset, beside which the tokenizer is cached.
        vocab_size: see `train_tokenizer`.
        progress: see `train_tokenizer`.
        others: the other datasets of a mixture, which it is trained on too.

    Raises:
        UserError: its folder cannot be written or is damaged.
    """
    every = [dataset, *others]
    key = digest([*(dataset_identity(each.manifest) for each in every), vocab_size])
    place = derived_place(dataset.uri, f"{TOKENIZER_PREFIX}{vocab_size}-{key}")
    build_once(place, lambda folder: save_tokenizer(_train(every, vocab_size, progress), folder))
    return load_tokenizer(str(place))


def _train(datasets: Sequence[LabelledDataset], vocab_size: int, progress: Progress | None) -> Any:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_training_sentences(datasets, progress), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def _training_sentences(datasets: Sequence[LabelledDataset], progress: Progress | None) -> Iterator[list[str]]:
    share = TRAINING_BYTES / max(1, sum(dataset.manifest.bytes_text for dataset in datasets))
    rows, total = 0, sum(dataset.manifest.rows for dataset in datasets)
    for texts in itertools.chain.from_iterable(read_texts(dataset) for dataset in datasets):
        chosen: Texts = texts if share >= 1 else texts.select(uniform(splitmix64(texts.hashes)) < share)
        yield from (sentences for sentences, _ in chosen.sentence_lists())
        rows += len(texts)
        if progress is not None:
            progress(rows, total)


def _add_control_tokens(fast: Any, classes: int, after: int = 0, *, hidden: bool = False) -> tuple[int, ...]:
    tokens = [f"<|{name}|>" for name in (*tag_names(classes), *(f"after_{name}" for name in tag_names(after)))]
    tokens += [HIDDEN] if hidden else []
    known = fast.get_vocab()
    fast.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)
    ids = tuple(int(each) for each in fast.convert_tokens_to_ids(tokens))
    # The library numbers new tokens by the vocabulary's size: if the ids have a hole, that id may be in use.
    if any(token not in known and number <= max(known.values()) for token, number in zip(tokens, ids, strict=True)):
        raise UserError(
            f"The tokenizer {fast.name_or_path!r} has {len(known):,} entries, and ids up to {max(known.values()):,}: "
            "a control token would get the id of another token. Number its ids without holes, choose another "
            "data.tokenizer, or an objective without control tokens."
        )
    return ids
