"""The scorer contract: documents in, one misalignment score per sentence out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from scorers.trusted_pickles import trusted_by_environment

DocumentKind = Literal["prose", "python"]


@dataclass(frozen=True, slots=True)
class Document:
    """A text, partitioned into sentences.

    Attributes:
        text: the raw text, never normalised.
        ends: int32 [n_sentences], exclusive ends of the sentences in code points, strictly increasing; the last is
            `len(text)`. They partition the text: sentence i is `text[ends[i-1]:ends[i]]`. An empty text has none.
        kind: `python` is split into physical lines, `prose` into sentences.
        name: the file name that a linter shows, or an empty string.
        given: fields of the record by name, as JSON values, for scorers that need one (`ScorerType`); a list holds one
            value per sentence. None if no scorer needs a field; a field that the record lacks has no key.
    """

    text: str
    ends: NDArray[np.int32]
    kind: DocumentKind = "prose"
    name: str = ""
    given: Mapping[str, Any] | None = None

    def sentences(self) -> list[str]:
        """Return the sentences in order; joined, they equal `text`."""
        starts = [0, *self.ends[:-1].tolist()] if len(self.ends) else []
        return [self.text[start:end] for start, end in zip(starts, self.ends.tolist(), strict=True)]


class ScoringError(Exception):
    """A scorer could not score a document. A value: `score` returns it and never raises it. It quotes no corpus text.

    Args:
        reason: a short machine-readable reason that quarantine counts by, such as `deadline` or `scorer-error`.
        detail: for people: the type of the exception and where it was raised, without any text of the document.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["ScoringError"], tuple[str, str]]:
        return (ScoringError, (self.reason, self.detail))


class SemanticOptions(BaseModel):
    """Base of the options that can change a score and so enter the fingerprint; `Execution` has those that cannot."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Execution(BaseModel):
    """Options that change how fast a score is computed, never its value; they do not enter the fingerprint.

    Attributes:
        device: torch device of scorers that run a network, such as `cpu` or `cuda:0`.
        threads: threads that numerical libraries may use in one process.
        batch_tokens: most padded tokens in a network's batch; a CPU takes smaller batches, which are faster there.
        precision: dtype that a network computes in; `auto` is float32 on a CPU and bfloat16 on CUDA (float16 where the
            GPU lacks bfloat16). Scores in float32 agree to 1e-6 in any batch; those in the other dtypes should be
            within 5e-3 of them.
        compile: whether to compile a network on CUDA, with a CUDA graph for each batch shape.
        deadline_s: seconds that one document may take before its scorer returns `ScoringError("deadline")`; as much
            again is allowed for every 50,000 characters of it.
        trusted_sha256: hashes of pickles that the user of this machine vouches for; see `scorers.trusted_pickles`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = "cpu"
    threads: int = 1
    batch_tokens: int = 16_384
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = True
    deadline_s: float = 60.0
    trusted_sha256: frozenset[str] = Field(default_factory=trusted_by_environment)


@runtime_checkable
class Scorer(Protocol):
    """Scores documents. Built once per process from `(name, options, execution)`, then called with many at a time.

    A score is a misalignment score: float32, >= 0, higher is worse, never NaN or infinite. Reward = -score.
    """

    name: str
    fingerprint: str

    def applies(self, document: Document) -> bool:
        """Return whether this scorer applies to the document; if not, its column is null there."""
        ...

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        """Return for each document its scores, [n_sentences], or the reason why it could not be scored.

        A document's result must not depend on the order of `documents`, nor on the other documents in the batch, beyond
        the last bits of a matrix product. Very long prose is passed in parts, cut between sentences, one document each.
        """
        ...


class ScorerType(Protocol):
    """What the registry expects of a scorer class (a new kind is a file with one such class).

    Optional members:

    - classmethod `check(options)`: raise `UserError` if something needed here is missing, such as weights, without
      loading or downloading anything;
    - classmethod `check_recorded(options, trusted)`: for a scorer named by a dataset, raise `UserError` if a file of it
      could run code and its hash is not among the trusted ones;
    - classmethod `given_field(options)`: the field of the corpus that `Document.given` must hold;
    - `documents`: the kind of documents, if the class applies to one kind alone; where the user chooses the kind, it is
      an option of this name;
    - `precision` of an instance: the dtype its network computes in, shown by `phf doctor`.
    """

    Options: type[SemanticOptions]
    main_option: str | None  # the option that `column=kind:VALUE` sets
    runs_on_gpu: bool  # whether `execution.device` matters

    def __call__(self, name: str, options: Any, execution: Execution) -> Scorer:
        """Load what the scorer needs; if something is missing, raise a `UserError` that says what to install."""
        ...
