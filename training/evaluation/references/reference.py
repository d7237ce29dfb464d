"""What runs are compared with: another run, a folder of a causal language model, an endpoint, or samples in a file."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.dataset.derived import digest
from scorers import hugging_face
from scorers.errors import UserError
from scorers.fingerprint import file_sha256, folder_sha256
from scorers.records import SUFFIXES
from training.endpoint import Endpoint, is_address
from training.evaluation.references.endpoint_samples import draw_from_endpoint
from training.evaluation.references.samples import Progress, ReferenceSamples, draw_in_blocks, draw_once, read_samples
from training.evaluation.references.text_model import TextModel, open_folder, open_run
from training.measuring_config import EvaluationConfig
from training.runs.folder import RunFolder
from training.runs.reference_report import ReferenceFacts
from training.runs.report import run_fingerprint

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST_NAME = 64


@dataclass(frozen=True)
class Reference:
    """A reference that exists; its model is loaded when it is needed first.

    Attributes:
        name: of its results.
        facts: what it is.
        samples: returns samples, drawn or read by these settings.
        model: loads the model; None for a file and an endpoint.
    """

    name: str
    facts: ReferenceFacts
    samples: Callable[[EvaluationConfig, Progress | None], ReferenceSamples]
    model: Callable[[], TextModel] | None


def find_reference(place: str, device: str, *, model: str | None = None, prompt: str = "") -> Reference:
    """Find a reference, without loading its model; draw one token of an endpoint.

    Args:
        place: folder of a run of `phf train` or of a Hugging Face model, a file of samples (JSON Lines, CSV or
            Parquet), or the address of an OpenAI-compatible endpoint.
        device: torch device.
        model: of an endpoint; None for its only one.
        prompt: of an endpoint, which begins a document.

    Raises:
        UserError: there is none, the run has no model yet, or the endpoint does not serve it.
    """
    if is_address(place):
        return _endpoint(Endpoint(place, model, "--reference"), prompt)
    path = Path(place)
    name = _as_name(path.resolve().name)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        facts = ReferenceFacts(kind="file", place=place, fingerprint=file_sha256(path)[:16])
        return Reference(name, facts, lambda config, _: read_samples(path, config.reference_samples), None)
    if (path / "run.json").is_file():
        return _run(name, place, RunFolder.existing(path), device)
    if (path / "config.json").is_file():
        hugging_face.refuse_devices(place)
        facts = ReferenceFacts(kind="model", place=place, fingerprint=_of_folder(path))
        return _model(name, facts, lambda: open_folder(path, device))
    raise UserError(
        f"--reference {place}: there is no such run or model, nor a file of samples. Give the --output of `phf train`, "
        "a folder with a Hugging Face model (config.json), a .jsonl, .csv or .parquet file with `text` and "
        "`log_prob`, or the address of an OpenAI-compatible endpoint (http://...)."
    )


def _run(name: str, place: str, run: RunFolder, device: str) -> Reference:
    facts = run.read_facts()
    if not run.model.is_dir():
        raise UserError(
            f"--reference {place} has no model yet (status: {facts.status}, step {facts.step} of "
            f"{facts.horizon.steps}). Finish its training first, or give another reference."
        )
    found = ReferenceFacts(kind="run", place=place, fingerprint=run_fingerprint(run), objective=facts.objective)
    return _model(name, found, lambda: open_run(run, device))


def _endpoint(endpoint: Endpoint, prompt: str) -> Reference:
    if any(0xD800 <= ord(each) <= 0xDFFF for each in prompt):
        raise UserError("--reference-prompt is not valid UTF-8. Give the text that begins a document.")
    endpoint.probe(
        prompt,
        logprobs=True,
        hint="If its model begins documents with a token that it does not add to an empty prompt itself, give its "
        "text: --reference-prompt '<|endoftext|>'.",
    )
    fingerprint = digest(["endpoint", endpoint.address, endpoint.model, prompt])[:16]
    facts = ReferenceFacts(
        kind="endpoint", place=endpoint.address, fingerprint=fingerprint, model=endpoint.model, prompt=prompt
    )

    def samples(config: EvaluationConfig, progress: Progress | None) -> ReferenceSamples:
        def draw(first: int, number: int, show: Progress) -> ReferenceSamples:
            return draw_from_endpoint(endpoint, prompt, config, first, number, show)

        return draw_in_blocks(draw, fingerprint, config, progress)

    server = endpoint.address.partition("://")[2].partition("/")[0]
    return Reference(_as_name(f"{endpoint.model}-{server}"), facts, samples, None)


def _as_name(text: str) -> str:
    return _NOT_IN_A_NAME.sub("-", text).strip(".-")[:_LONGEST_NAME] or "reference"


def _model(name: str, facts: ReferenceFacts, load: Callable[[], TextModel]) -> Reference:
    load = cache(load)
    return Reference(name, facts, lambda config, progress: draw_once(load, facts.fingerprint, config, progress), load)


def _of_folder(folder: Path) -> str:
    try:
        return folder_sha256(folder)[:16]
    except OSError as error:
        raise UserError(f"Cannot read the model {folder}: {error.strerror or error}.") from None
