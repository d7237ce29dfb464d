"""The token store: a labelled dataset as flat arrays of token ids, sentence and document offsets, and scores."""

from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.dataset.derived import STORE_META
from scorers.errors import UserError
from scorers.paths import RelativePath
from scorers.registry import ColumnName
from scorers.settings import describe_first_error
from scorers.stored import Count, read_stored
from training.data.arrays import read_array
from training.disk import refuse_links

META_NAME = STORE_META
# Beside the arrays: the tokens that overlap a scorer's findings; see `training.data.token_spans`.
FINDINGS = "findings"
FOUND_TOKENS = "tokens.arrow"
FINDINGS_COUNTS = "counts.json"
STORE_VERSION: Final = 1


class StoreMeta(BaseModel):
    """`store.json`, written last: the contents of a store, and its dataset and tokenizer.

    Attributes:
        version: of the format.
        key: hash of `dataset` and `tokenizer`.
        dataset: fingerprint of texts, sentences and scores; excludes thresholds, tags and generations.
        tokenizer: fingerprint of the tokenizer.
        tokenizer_name: as the user gave it, for messages.
        created_by: distribution and version.
        columns: the score columns.
        documents, sentences, tokens, text_bytes: totals; text in UTF-8 bytes.
        files: size in bytes of every array's file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = STORE_VERSION
    key: str
    dataset: str
    tokenizer: str
    tokenizer_name: str
    created_by: str
    columns: list[ColumnName]
    documents: Count
    sentences: Count
    tokens: Count
    text_bytes: Count
    files: dict[RelativePath, Count]


class _Counts(BaseModel):
    sentences: Count
    unlocated: Count


class TokenStore:
    """Memory-mapped arrays; document i of the store is row i of the dataset. Pickling keeps only the path."""

    def __init__(self, path: Path, meta: StoreMeta) -> None:
        self.path = path
        self.meta = meta

    def __reduce__(self) -> tuple[Any, ...]:
        return (TokenStore.open, (self.path,))

    @classmethod
    def open(cls, path: str | Path) -> "TokenStore":
        """Open a store and check the sizes of its files.

        Raises:
            UserError: the store is missing, has another version or contains a link, or a file is missing or has the
                wrong size.
        """
        folder = Path(path)
        refuse_links(folder)
        try:
            meta = StoreMeta.model_validate_json(read_stored(folder / META_NAME))
        except FileNotFoundError:
            raise UserError(
                f"{folder} is not a token store: it has no {META_NAME}. Run `phf tokenize` to build one."
            ) from None
        except OSError as error:
            raise UserError(
                _describe_damage(folder, f"{META_NAME} cannot be read: {error.strerror or error}")
            ) from None
        except ValidationError as error:
            raise UserError(_describe_damage(folder, f"{META_NAME}, field {describe_first_error(error)}")) from None
        for name, size in meta.files.items():
            file = folder / name
            if not file.is_file() or file.stat().st_size != size:
                raise UserError(_describe_damage(folder, f"{name} is not of {size} bytes"))
        return cls(folder, meta)

    @property
    def num_documents(self) -> int:
        """Number of documents, including those without a score or text."""
        return self.meta.documents

    @property
    def num_sentences(self) -> int:
        """Number of sentences in all documents."""
        return self.meta.sentences

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all sentences, without EOS and control tokens."""
        return self.meta.tokens

    @property
    def columns(self) -> list[str]:
        """The score columns."""
        return self.meta.columns

    @cached_property
    def tokens(self) -> NDArray[Any]:
        """uint16 or uint32 [num_tokens], the ids of all sentences, concatenated."""
        return self._array("tokens", self.num_tokens, "uint16", "uint32")

    @cached_property
    def sentence_offsets(self) -> NDArray[np.int64]:
        """int64 [num_sentences + 1]: sentence s is `tokens[offsets[s]:offsets[s+1]]`."""
        return self._offsets("sentence_offsets", self.num_sentences, self.num_tokens)

    @cached_property
    def document_offsets(self) -> NDArray[np.int64]:
        """int64 [num_documents + 1]: document d has the sentences `offsets[d]` to `offsets[d+1]`, exclusive."""
        return self._offsets("document_offsets", self.num_documents, self.num_sentences)

    @cached_property
    def text_hashes(self) -> NDArray[np.uint64]:
        """uint64 [num_documents], the first 8 bytes, little-endian, of BLAKE2b-64 of each document's UTF-8 text."""
        return self._array("text_hashes", self.num_documents, "uint64")

    @cached_property
    def text_bytes(self) -> NDArray[np.int64]:
        """int64 [num_documents], length of each document's text in UTF-8 bytes."""
        return self._array("text_bytes", self.num_documents, "int64")

    def scores(self, column: str) -> NDArray[np.float32]:
        """Return float32 [num_sentences], NaN in documents without a score in the column.

        Raises:
            UserError: there is no such column.
        """
        self._require(column)
        return self._array(f"scores.{column}", self.num_sentences, "float32")

    def document_means(self, column: str) -> NDArray[np.float64]:
        """Return each document's mean sentence score, float64 [num_documents]; NaN where null, 0 without sentences.

        Raises:
            UserError: there is no such column.
        """
        self._require(column)
        return self._array(f"means.{column}", self.num_documents, "float64")

    def found_tokens(self, name: str) -> NDArray[np.uint8]:
        """Return uint8 [num_tokens], 1 where a token overlaps a finding; `name` is from `ensure_findings`.

        Raises:
            UserError: the findings are missing or damaged.
        """
        return self._array(f"{FINDINGS}/{name}/{FOUND_TOKENS.removesuffix('.arrow')}", self.num_tokens, "uint8")

    def findings_counts(self, name: str) -> dict[str, int]:
        """Return the number of `sentences` with a score > 0, and how many of them are `unlocated`: flagged whole.

        Raises:
            UserError: the findings are missing or damaged.
        """
        path = self.path / FINDINGS / name / FINDINGS_COUNTS
        try:
            return _Counts.model_validate_json(read_stored(path)).model_dump()
        except (OSError, ValueError) as error:
            raise UserError(_describe_damage(path.parent, f"{FINDINGS_COUNTS} ({type(error).__name__})")) from None

    def _require(self, column: str) -> None:
        if column not in self.columns:
            raise UserError(f"The token store {self.path} has no column {column!r}; it has: {', '.join(self.columns)}.")

    def _array(self, name: str, length: int, *dtypes: str) -> NDArray[Any]:
        try:
            values = read_array(self.path / f"{name}.arrow")
        except (OSError, pa.ArrowException) as error:
            raise UserError(_describe_damage(self.path, f"{name}.arrow ({type(error).__name__})")) from None
        if len(values) != length or values.dtype.name not in dtypes:
            what = f"{name}.arrow holds {len(values):,} values of {values.dtype}, not {length:,} of {dtypes[0]}"
            raise UserError(_describe_damage(self.path, what))
        return values

    def _offsets(self, name: str, parts: int, whole: int) -> NDArray[np.int64]:
        offsets = self._array(name, parts + 1, "int64")
        if offsets[0] != 0 or offsets[-1] != whole:
            raise UserError(_describe_damage(self.path, f"{name}.arrow does not reach from 0 to {whole:,}"))
        return offsets


def _describe_damage(folder: Path, what: str) -> str:
    return f"The token store {folder} is damaged: {what}. Delete the folder; it will be built again."
