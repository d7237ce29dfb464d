"""Token scores that `phf credit` learnt, beside a token store: their facts, and how a run finds them."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from scorers.errors import UserError
from scorers.paths import escape_path
from scorers.settings import describe_first_error
from scorers.stored import Count, read_stored
from training.data.arrays import read_array
from training.data.store import TokenStore

CREDIT = "credit"
FACTS = "credit.json"
TOKENS = "tokens.arrow"
WEIGHTS = "model.safetensors"
PREFIX = "credit:"

# Tokens checked at once.
_CHUNK = 1 << 20

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
CreditName = Annotated[str, Field(pattern=f"^{_NAME.pattern}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Agreement(_Part):
    """Learnt tokens against those that a scorer points at, in held-out sentences.

    Attributes:
        reference: `spans`, what the scorer found, or `deletion`, the words without which the score falls by half or
            more.
        sentences: that were compared.
        unlocated: sentences with a score above 0 in which the reference points at nothing; they are not compared.
        tokens: of the sentences compared.
        guilty: tokens that the reference points at.
        credited: tokens with a score above 0.
        both: tokens that are guilty and credited.
    """

    reference: Literal["spans", "deletion"]
    sentences: Count
    unlocated: Count
    tokens: Count
    guilty: Count
    credited: Count
    both: Count

    @property
    def precision(self) -> float | None:
        """Share of the credited tokens that are guilty; None if there are none."""
        return self.both / self.credited if self.credited else None

    @property
    def recall(self) -> float | None:
        """Share of the guilty tokens that are credited; None if there are none."""
        return self.both / self.guilty if self.guilty else None


class CreditFacts(_Part):
    """`credit.json`, written last.

    Attributes:
        version: of the format.
        name: that settings use.
        column: of the scores that were divided among tokens.
        store: key of the token store.
        scorer: fingerprint of the column's scorer.
        settings: how they were learnt.
        settings_key: hash of all that decides the result.
        fingerprint: hash of `settings_key` and the weights; what a run records.
        created_by: distribution and version.
        scale: the score that counts as 1.
        sentences_learnt, sentences_held_out: how many were learnt from, and measured on.
        steps, best_step: that were made, and the one whose weights were taken.
        loss: on held-out sentences, in nats.
        rank_correlation: Spearman's, between learnt and true scores of held-out sentences; None if either is constant.
        top_token, top_tenth: share of the credit of the worst held-out sentences that their worst token has, and their
            worst tenth of tokens (at least one).
        flagged: share of all tokens with a score above 0.
        agreement: with the scorer's own findings, or with deleting words; None if it was not measured.
        not_measured: why there is no agreement.
    """

    version: Literal[1] = 1
    name: CreditName
    column: str
    store: str
    scorer: str
    settings: dict[str, JsonValue]
    settings_key: str
    fingerprint: str
    created_by: str
    scale: float
    sentences_learnt: Count
    sentences_held_out: Count
    steps: Count
    best_step: Count
    loss: float
    rank_correlation: float | None
    top_token: float | None
    top_tenth: float | None
    flagged: float
    agreement: Agreement | None
    not_measured: str | None = None


def check_name(name: str) -> None:
    """Refuse a name that a folder and a setting cannot have.

    Raises:
        UserError: it has other characters, or too many.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"--name {name!r} must begin with a letter, a digit or _, and have at most 64 of these, dots and hyphens."
        )


def credit_folder(store: TokenStore, name: str) -> Path:
    """Return the folder of a credit by its name, whether or not it exists."""
    return store.path / CREDIT / name


def read_credit(store: TokenStore, name: str) -> CreditFacts:
    """Read the facts of a credit.

    Raises:
        UserError: there is none of that name, or it is damaged, or of another store.
    """
    folder = credit_folder(store, name)
    try:
        facts = CreditFacts.model_validate_json(read_stored(folder / FACTS))
    except FileNotFoundError:
        known = sorted(each.name for each in (store.path / CREDIT).glob("*") if (each / FACTS).is_file())
        has = f"it has: {', '.join(map(escape_path, known))}" if known else "it has none"
        raise UserError(
            f"There is no credit {name!r} in the token store {store.path}; {has}. Make it with `phf credit`, with the "
            "same dataset, tokenizer and store."
        ) from None
    except OSError as error:
        raise _damaged(folder, f"{FACTS}: {error.strerror or error}") from None
    except ValidationError as error:
        raise _damaged(folder, f"{FACTS}, field {describe_first_error(error)}") from None
    if facts.store != store.meta.key or facts.name != name:
        raise UserError(f"{folder} belongs to another token store or name. Delete the folder.")
    return facts


def check_credit(store: TokenStore, name: str, column: str) -> None:
    """Refuse a credit that a run on a score column cannot use.

    It reads the scores once: a NaN would end up in the loss, and be hidden or masked by no threshold.

    Raises:
        UserError: it is missing, damaged, or of another column.
    """
    facts = read_credit(store, name)
    if facts.column != column:
        raise UserError(
            f"data.token_scores=credit:{name} divides the scores of {facts.column!r}, but the run is about {column!r}. "
            f"Make one with `phf credit … --column {column} --name NAME`."
        )
    values = credit_scores(store, name)
    for first in range(0, len(values), _CHUNK):
        # NaN fails both comparisons.
        part = values[first : first + _CHUNK]
        wrong = np.flatnonzero(~((part >= 0) & (part < np.inf)))
        if len(wrong):
            place = int(wrong[0])
            raise _damaged(
                credit_folder(store, name),
                f"{TOKENS} holds {part[place]:g} for token {first + place:,}, not a score of at least 0",
            )


def credit_scores(store: TokenStore, name: str) -> NDArray[np.float32]:
    """Return the score of each token of a store, float32 [num_tokens], at least 0, a memory map.

    Raises:
        UserError: it is missing or damaged.
    """
    folder = credit_folder(store, name)
    try:
        values: NDArray[Any] = read_array(folder / TOKENS)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(folder, f"{TOKENS} ({type(error).__name__})") from None
    if len(values) != store.num_tokens or values.dtype != np.float32:
        raise _damaged(folder, f"{TOKENS} holds {len(values):,} values of {values.dtype}")
    return values


def credit_of(setting: bool | str) -> str | None:
    """Return the name in the setting `data.token_scores`; None if it names no credit."""
    return setting.removeprefix(PREFIX) if isinstance(setting, str) else None


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(f"{folder} is damaged: {what}. Delete the folder, and make it again with `phf credit`.")
