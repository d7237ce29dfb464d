"""A model as a law of texts, and texts of one model measured under another."""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.derived import digest
from scorers.contract import DocumentKind
from scorers.errors import UserError
from scorers.sentences import split
from training.data.tokenizers import Tokenizer, foreign_control_ids
from training.evaluation.generating import open_writer
from training.evaluation.likelihood import Law, Likelihood, log_probabilities
from training.runs.folder import RunFolder

NOT_THE_TEXT = "the tokenizer does not reproduce the text"
NEVER_DRAWN = "holds a token that the model never draws"
REPLACED = "\ufffd"  # stands for bytes that are no character

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Texts:
    """Texts with the tokens that a model drew.

    Attributes:
        texts: the texts.
        ids: their tokens, without prompt and EOS; None for texts from elsewhere.
        ended: whether each ended by itself; the others were cut.
        vocabulary: of the ids, see `TextModel.vocabulary`; None without ids.
    """

    texts: list[str]
    ids: list[list[int]] | None
    ended: list[bool]
    vocabulary: str | None

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, chosen: Sequence[int]) -> "Texts":
        """The texts at these indices."""
        ids = None if self.ids is None else [self.ids[each] for each in chosen]
        return replace(
            self, texts=[self.texts[each] for each in chosen], ids=ids, ended=[self.ended[each] for each in chosen]
        )


@dataclass(frozen=True)
class Measured:
    """Texts under a model.

    Attributes:
        chosen: int64 [m], indices of the measured texts.
        likelihood: of these, in this order.
        reencoded: whether the model has another tokenizer than the one that drew the texts.
        left_out: number of other texts, by reason.
    """

    chosen: NDArray[np.int64]
    likelihood: Likelihood
    reencoded: bool
    left_out: dict[str, int]


@dataclass(frozen=True)
class TextModel:
    """A loaded model, and the law of its texts.

    Attributes:
        model: a Hugging Face causal language model.
        tokenizer: its tokenizer.
        law: what it draws, and after which prompt.
        vocabulary: hash of what decides which text ids stand for, and which of them ends a text. Models that share it
            are compared token by token; control tokens are not part of it.
        kind: of the documents that it was trained on, each of whose sentences was tokenised alone; None for a foreign
            model, whose texts are tokenised whole.
    """

    model: Any
    tokenizer: Tokenizer
    law: Law
    vocabulary: str
    kind: DocumentKind | None = None

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The texts of ids that it could draw.

        Raises:
            UserError: an id is not in its vocabulary.
        """
        size = self.law.vocab_size or self.tokenizer.base_size
        if any(not 0 <= each < size for row in ids for each in row):
            raise UserError(
                f"The samples hold token ids that the tokenizer {self.tokenizer.name} does not have: they are damaged, "
                "or of another model. Evaluate the run again."
            )
        return self.tokenizer.decode_all([list(row) for row in ids])

    def measure(self, texts: Texts, progress: Progress | None = None) -> Measured:
        """Log-probabilities of texts under its law.

        Texts drawn with the same vocabulary are measured by their own tokens. Others are tokenised as in training; the
        probability is then that of these tokens, and so a lower bound of the text's, which has other tokenisations.
        Texts that this changes, those cut inside a character, and those that it never draws are left out.
        """
        same = texts.ids is not None and texts.vocabulary == self.vocabulary
        ids = texts.ids if same and texts.ids is not None else self._encode(texts.texts)
        chosen = [index for index, row in enumerate(ids) if row is not None]
        rows = [row for row in ids if row is not None]
        ended = [texts.ended[index] for index in chosen]
        found = log_probabilities(self.model, self.law, rows, ended, progress=progress)
        possible = np.isfinite(found.nats)
        counts = {NOT_THE_TEXT: len(ids) - len(rows), NEVER_DRAWN: int((~possible).sum())}
        return Measured(
            chosen=np.array(chosen, dtype=np.int64)[possible],
            likelihood=Likelihood(found.nats[possible], found.tokens[possible]),
            reencoded=not same,
            left_out={reason: count for reason, count in counts.items() if count},
        )

    def _encode(self, texts: Sequence[str]) -> list[list[int] | None]:
        sentences: list[str] = []
        first: list[bool] = []
        counts = []
        for text in texts:
            ends = [len(text)] if self.kind is None else list(split(text, self.kind))
            starts = [0, *ends[:-1]] if ends else []
            sentences += [text[start:end] for start, end in zip(starts, ends, strict=True)]
            first += [start == 0 for start in starts]
            counts.append(len(ends))
        ids, lengths = self.tokenizer.encode(sentences, np.array(first, dtype=np.bool_))
        ends_of_sentences = np.concatenate([[0], np.cumsum(lengths)])
        ends_of_texts = ends_of_sentences[np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])]
        rows = [ids[start:end].tolist() for start, end in itertools.pairwise(ends_of_texts.tolist())]
        again = self.tokenizer.decode_all(rows)
        return [
            row if text == decoded and REPLACED not in text else None
            for row, text, decoded in zip(rows, texts, again, strict=True)
        ]


def open_run(run: RunFolder, device: str) -> TextModel:
    """Load the finished model of a run, with the law that `phf evaluate` samples it from, but at temperature 1.

    Raises:
        UserError: it cannot be loaded, or is not the model of its `run.json`.
    """
    facts, writer = run.read_facts(), open_writer(run.model, device)
    words, rows = facts.tokenizer, writer.model.get_input_embeddings().num_embeddings
    first = words.eos_id if words.bos_id is None else words.bos_id
    prompt = (first, *words.control_ids[:1])
    if max(*prompt, *words.added_ids, words.eos_id, words.vocab_size - 1) >= rows:
        raise UserError(
            f"{run.model} has {rows:,} tokens, and {run.facts} names others: they do not belong together. Restore the "
            "folder of the run, or export its model again."
        )
    law = Law(
        prompt_ids=prompt,
        eos_id=words.eos_id,
        banned_ids=_banned(words.eos_id, [*writer.banned_ids, *words.added_ids, first]),
        vocab_size=words.vocab_size,
        context_length=facts.model.context_length,
    )
    return TextModel(writer.model, writer.tokenizer, law, _vocabulary(writer.tokenizer, law.eos_id), facts.kind)


def open_folder(folder: Path, device: str) -> TextModel:
    """Load a local causal language model; one that phf exported with tags is read after its best.

    Raises:
        UserError: it cannot be loaded.
    """
    writer = open_writer(folder, device)
    rows = writer.model.get_input_embeddings().num_embeddings
    prompt = (writer.first_id, *list(writer.tags.values())[:1])
    if max(*prompt, writer.eos_id) >= rows:
        raise UserError(f"{folder}: its model has {rows:,} tokens, and its tokenizer more. Restore the folder.")
    law = Law(
        prompt_ids=prompt,
        eos_id=writer.eos_id,
        banned_ids=_banned(writer.eos_id, [each for each in writer.banned_ids if each < rows]),
        vocab_size=min(rows, writer.tokenizer.base_size),
        context_length=writer.context_length,
    )
    return TextModel(writer.model, writer.tokenizer, law, _vocabulary(writer.tokenizer, law.eos_id))


def _banned(eos_id: int, ids: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted({*ids} - {eos_id}))


def _vocabulary(tokenizer: Tokenizer, eos_id: int) -> str:
    content = json.loads(tokenizer.fast.backend_tokenizer.to_str())
    tags = set(foreign_control_ids(tokenizer.fast, ()))
    added = [[each["id"], each["content"]] for each in content["added_tokens"] if each["id"] not in tags]
    return digest([content["model"], content["decoder"], sorted(added), eos_id])
