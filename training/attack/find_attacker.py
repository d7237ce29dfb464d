"""Who writes the prompts of a red-team attack: the recombination of earlier ones, or a language model."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.dataset.derived import digest
from scorers import hugging_face
from scorers.errors import UserError
from scorers.fingerprint import folder_sha256
from training.attack.attackers import Imitation, Recombination, RemoteImitation
from training.attack.red_team import Attacker
from training.endpoint import Endpoint, is_address
from training.evaluation.generating import Writer, open_writer
from training.measuring_config import EvaluationConfig
from training.runs.folder import RunFolder
from training.runs.report import run_fingerprint

RECOMBINATION = "recombination"


@dataclass(frozen=True)
class FoundAttacker:
    """An attacker that exists; its model is loaded when it is needed first.

    Attributes:
        name: for readers.
        fingerprint: of the model.
        open: builds it, given the temperature and top-p of its proposals.
        repeatable: whether it proposes the same prompts again from the same pool and random numbers.
    """

    name: str
    fingerprint: str
    open: Callable[[EvaluationConfig], Attacker]
    repeatable: bool = True


def find_attacker(place: str | None, device: str, *, model: str | None = None) -> FoundAttacker:
    """Find an attacker, without loading its model; draw one token of an endpoint.

    Args:
        place: folder of a run or of a Hugging Face causal language model, or the address of an OpenAI-compatible
            endpoint; None for recombination.
        device: torch device.
        model: of an endpoint; None for its only one.

    Raises:
        UserError: there is none, the run has no model yet, or the endpoint does not serve it.
    """
    if place is not None and is_address(place):
        return _endpoint(Endpoint(place, model, "--attacker"))
    if model is not None:
        raise UserError(
            f"--attacker-model {model} is for an endpoint, and --attacker is not the address of one (http://...). "
            "Leave it out."
        )
    if place is None:
        return FoundAttacker(RECOMBINATION, RECOMBINATION, lambda _: Recombination())
    path = Path(place)
    name = path.resolve().name
    if (path / "run.json").is_file():
        run = RunFolder.existing(path)
        if not run.model.is_dir():
            raise UserError(
                f"--attacker {place} has no model yet (status: {run.read_facts().status}). Finish its training first, "
                "or give another attacker."
            )
        return _model(name, run_fingerprint(run), run.model, device)
    if (path / "config.json").is_file():
        hugging_face.refuse_devices(place)
        try:
            return _model(name, folder_sha256(path)[:16], path, device)
        except OSError as error:
            raise UserError(f"Cannot read the model {place}: {error.strerror or error}.") from None
    raise UserError(
        f"--attacker {place}: there is no such run or model. Give the --output of `phf train`, a folder with a "
        "Hugging Face model (config.json), or the address of an OpenAI-compatible endpoint (http://...)."
    )


def _endpoint(endpoint: Endpoint) -> FoundAttacker:
    endpoint.probe("\n")
    return FoundAttacker(
        f"{endpoint.model} at {endpoint.address}",
        digest(["endpoint", endpoint.address, endpoint.model])[:16],
        lambda sampling: RemoteImitation(endpoint, sampling),
        repeatable=False,
    )


def _model(name: str, fingerprint: str, folder: Path, device: str) -> FoundAttacker:
    @cache
    def writer() -> Writer:
        return open_writer(folder, device)

    return FoundAttacker(name, fingerprint, lambda sampling: Imitation(writer(), sampling))
