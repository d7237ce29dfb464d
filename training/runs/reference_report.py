"""The format of a comparison with a reference: `evaluation/references/NAME.json` of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.dataset.derived import digest
from scorers.shell import phf
from scorers.stored import Count
from training.runs.folder import RunFolder
from training.runs.report import Estimate, Part, read_stored_report, read_stored_reports

REFERENCES = "references"


class ReferenceFacts(Part):
    """What a run is compared with.

    Attributes:
        kind: a run of `phf train`, a folder of a causal language model, a file of samples with log-probabilities, or an
            OpenAI-compatible endpoint.
        place: path, as given, or address.
        fingerprint: changes whenever its samples or their log-probabilities could; of an endpoint, only with its
            address, model and prompt.
        objective: of a run.
        model: of an endpoint.
        prompt: of an endpoint, which its samples continue.
    """

    kind: Literal["run", "model", "file", "endpoint"]
    place: str
    fingerprint: str
    objective: str | None = None
    model: str | None = None
    prompt: str | None = None


class DrawnFacts(Part):
    """The settings of the reference's samples, and the limit of tokens in force; None for a file's samples."""

    reference_samples: Count
    reference_tokens: Count
    seed: Count
    max_tokens: Count | None


class Compared(Part):
    """Texts of one model under another.

    Attributes:
        texts: number of measured texts.
        tokens: tokens of those that the figures per token are over, EOS among them.
        ended: texts that ended by themselves: their EOS is counted. The others were cut.
        reencoded: whether the tokenizers differ, so that each model reads its own tokens of the same text.
        left_out: texts that were not measured, by reason.
    """

    texts: Count
    tokens: Count
    ended: Count
    reencoded: bool
    left_out: dict[str, Count] = Field(default_factory=dict)


class DivergenceFacts(Compared):
    """KL(reference || run), estimated from the reference's samples x as the mean of log p_ref(x) - log p_run(x).

    Both models are sampled at temperature 1 with control tokens banned, a conditional run after its best tag. Samples
    that were cut are beginnings of texts, so that this is the divergence of the beginnings up to that length.

    Attributes:
        kl: nats per text.
        kl_per_token: nats per token, of the reference where its tokens are known, else of the run.
    """

    kl: Estimate
    kl_per_token: Estimate


class UnderReferenceFacts(Compared):
    """Stored samples of the run under the reference.

    Attributes:
        samples: hash of the samples.
        perplexity: per token of the reference; comparable only for one reference.
        bits_per_byte: None if no sample has text.
    """

    samples: str
    perplexity: Estimate
    bits_per_byte: Estimate | None


class ReferenceReport(Part):
    """`NAME.json`.

    Attributes:
        schema_version: version of this format.
        created_by: distribution and version.
        run: fingerprint of the run's facts (`run.json`).
        name: name of the reference, and of the file.
        reference: what the run is compared with.
        drawn: the samples of the reference.
        prompt: token ids that texts of the run continue.
        divergence: None if it is infinite, or no text could be measured.
        under_reference: stored samples of the run, by the name of their table (`samples`, `guided`); empty if the
            reference is no local model, or the run was not evaluated.
        device: torch device.
        seconds: duration.
        warnings: caveats for readers of the figures.
        versions: versions of the relevant libraries.
    """

    schema_version: Literal[1] = 1
    created_by: str
    run: str
    name: str
    reference: ReferenceFacts
    drawn: DrawnFacts
    prompt: list[Count]
    divergence: DivergenceFacts | None
    under_reference: dict[str, UnderReferenceFacts] = Field(default_factory=dict)
    device: str
    seconds: float
    warnings: list[str] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)


def samples_digest(ids: Sequence[Sequence[int]], ended: Sequence[bool]) -> str:
    """`UnderReferenceFacts.samples` of samples with these tokens."""
    return digest([ids, ended])[:16]


def reference_path(run: RunFolder, name: str) -> Path:
    """The file of a comparison with the reference of this name."""
    return run.evaluation / REFERENCES / f"{name}.json"


def read_reference_report(run: RunFolder, name: str) -> ReferenceReport | None:
    """The last comparison with the reference of this name; None if there is none.

    Raises:
        UserError: the file is damaged or of another version.
    """
    return read_stored_report(ReferenceReport, reference_path(run, name), run, _again(run))


def _again(run: RunFolder) -> str:
    return f"{phf('evaluate', run.path)} --reference ..."


def read_reference_reports(run: RunFolder) -> dict[str, ReferenceReport]:
    """All comparisons of a run with references, by name.

    Raises:
        UserError: one is damaged or of another version.
    """
    return {
        each.name: each for each in read_stored_reports(ReferenceReport, run.evaluation / REFERENCES, run, _again(run))
    }
