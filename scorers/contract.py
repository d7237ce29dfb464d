"""The contract that every scorer obeys: documents in, one misalignment score a sentence out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from scorers.trust import trusted_by_environment

DocumentKind = Literal["prose", "python"]


@dataclass(frozen=True, slots=True)
class Document:
    """A text with the partition of its characters into sentences.

    Attributes:
        text: the raw text, never normalised.
        ends: int32 [n_sentences], exclusive ends of the sentences in code points, strictly increasing, the last one
            `len(text)`. They partition the text: sentence i is `text[ends[i-1]:ends[i]]`. An empty text has none.
        kind: what the text is; Python is split into physical lines, prose into sentences.
        name: what a linter shows as the file's name, or an empty string.
        given: a field of the corpus by name, as a JSON value, for scorers that ask for one (`ScorerType`); a list in it
            has a value for each sentence. None where no scorer does; without the name where the record lacks the field.
    """

    text: str
    ends: NDArray[np.int32]
    kind: DocumentKind = "prose"
    name: str = ""
    given: Mapping[str, Any] | None = None

    def sentences(self) -> list[str]:
        """The sentences, in order; joined they are `text`."""
        starts = [0, *self.ends[:-1].tolist()] if len(self.ends) else []
        return [self.text[start:end] for start, end in zip(starts, self.ends.tolist(), strict=True)]


class ScoringError(Exception):
    """A scorer could not score a document. It is a value: returned, never raised, and it holds no text of the corpus.

    Args:
        reason: a short machine-readable reason that quarantine counts by, such as `deadline` or `scorer-error`.
        detail: for people; the type of the exception and where it was, without any text of the document.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["ScoringError"], tuple[str, str]]:
        return (ScoringError, (self.reason, self.detail))


class SemanticOptions(BaseModel):
    """Base of the options that can change a score. They enter the fingerprint; see `Execution` for those that can't."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Execution(BaseModel):
    """Options that change how fast a score is computed, never its value; they enter no fingerprint.

    Attributes:
        device: torch device of scorers that run a network, such as `cpu` or `cuda:0`.
        threads: threads that numerical libraries may use in one process.
        batch_tokens: padded tokens a network gets at once, at most; on a CPU fewer are faster, and taken.
        precision: that a network computes in; `auto` is float32 on a CPU and bfloat16 (or float16, where the GPU has no
            other) on CUDA. Scores in float32 agree to 1e-6 in any batch; those in the others should be within 5e-3 of
            them.
        compile: whether a network on CUDA is compiled, a CUDA graph for each shape of batch.
        deadline_s: seconds that one document may take before its scorer answers with `ScoringError("deadline")`, and as
            much again for every 50,000 characters of it.
        trusted_sha256: hashes of pickles that the user of this machine vouches for; see `scorers.trust`.
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
    """Scores documents. Built once a process, `(name, options, execution)`, then called with many documents at a time.

    A score is a misalignment score: float32, >= 0, higher is worse, never NaN or infinite. Reward = -score.
    """

    name: str
    fingerprint: str

    def applies(self, document: Document) -> bool:
        """Whether this scorer has anything to say of the document; where it has not, its column is null."""
        ...

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        """Scores, one array a document, of shape [n_sentences], or why the document could not be scored.

        A document's result must not depend on the order of `documents`, nor, beyond the last bits of a matrix product,
        on the others beside it. Prose that is very long comes in parts, cut between sentences, each a document here.
        """
        ...


class ScorerType(Protocol):
    """What the registry expects of a scorer's class (a new kind is a file with one such class).

    It may have a classmethod `check(options)` too, that raises `UserError` when something is missing to run here, such
    as weights, without loading or downloading anything; a classmethod `check_recorded(options, trusted)`, that raises
    where a dataset names a scorer and files of it that could run code have none of the trusted hashes; and a
    classmethod `given_field(options)`, that names the field of the corpus which `Document.given` must hold. A class
    that applies to one kind of documents alone has that in an attribute `documents`; where the user chooses, the option
    has this name. An instance may have an attribute `precision`, what its network computes in, for `phf doctor`.
    """

    Options: type[SemanticOptions]
    main_option: str | None  # the option that `column=kind:VALUE` sets
    runs_on_gpu: bool  # whether `execution.device` matters

    def __call__(self, name: str, options: Any, execution: Execution) -> Scorer:
        """Load what the scorer needs; `UserError` says what to install where that is missing."""
        ...
