"""Build a real `detoxify.Detoxify` from a published or a local checkpoint, checked before it is unpickled.

Detoxify's loader asks the Hugging Face hub for the base model's configuration even if it is given a folder, and then
reads that folder's configuration without the number of classes, so that the classifier does not fit. Here the folder
replaces the base model's name, which is enough, also with transformers 5.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from scorers import hugging_face
from scorers.classifiers.transformers_models import longest_input, quiet_transformers
from scorers.errors import UserError
from scorers.fingerprint import file_sha256
from scorers.trusted_pickles import remedy

# File names from detoxify.MODEL_URLS, repeated so that the files can be found without importing torch.
VARIANTS = {
    "original": "toxic_original-c1212f89.ckpt",
    "unbiased": "toxic_debiased-c7548aa0.ckpt",
    "multilingual": "multilingual_debiased-0b549669.ckpt",
    "original-small": "original-albert-0e1d6498.ckpt",
    "unbiased-small": "unbiased-albert-c8519128.ckpt",
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine whose sha256 was checked."""

    path: Path
    sha256: str


def locate(model: str, sha256: str | None, *, download: bool = True) -> Checkpoint:
    """Find the checkpoint of a published variant or a local file, and check its hash.

    A published variant is taken from the cache of `torch.hub`, or downloaded to it. By torch.hub's convention its file
    name holds the first eight hex digits of its sha256, which must match; `sha256` is checked as well.

    Raises:
        UserError: there is no such file or variant, its hash differs, or the download failed.
    """
    if model in VARIANTS:
        path = hub_folder() / VARIANTS[model]
        if not path.is_file():
            if not download:
                raise UserError(
                    f"The weights of Detoxify's {model!r} are not on this machine ({path}). They are downloaded when "
                    "the scorer is first used. Without a network use toxicity=linear, which comes with its weights."
                )
            _download(model, path)
        prefix = _hash_prefix(path.name)
    else:
        path = Path(model)
        if not path.is_file():
            raise UserError(
                f"Detoxify's model {model!r} is neither a published variant ({', '.join(VARIANTS)}) nor a file."
            )
        prefix = ""
    digest = file_sha256(path)
    if not digest.startswith(prefix):
        raise UserError(
            f"{path} is damaged or another file: its sha256 begins with {digest[:8]}, but its name says {prefix}. "
            "It is not loaded; delete it."
        )
    if sha256 is not None and digest != sha256.lower():
        raise UserError(f"{path} has the sha256 {digest}, not {sha256} as the option sha256 says; it is not loaded.")
    return Checkpoint(path, digest)


def hub_folder() -> Path:
    """Return the cache folder of `torch.hub`, found as torch finds it, without importing torch."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", str(Path(cache) / "torch"))
    return Path(home).expanduser() / "hub" / "checkpoints"


def load(checkpoint: Checkpoint, folder: Path | None, device: str, *, trusted: bool) -> Any:
    """Return a `detoxify.Detoxify` in evaluation mode and float32, whose tokenizer truncates at the model's limit.

    Args:
        checkpoint: from `locate`.
        folder: configuration and tokenizer files of the base model; None to take them from the hub or its cache.
        device: a torch device.
        trusted: whether the user vouches for the checkpoint's hash. A pickle can run any code, so an untrusted one must
            first pass torch's unpickler for plain weights.

    Raises:
        UserError: a file is missing, unsafe, not a Detoxify checkpoint, or does not fit the configuration.
    """
    import detoxify.detoxify as library

    if not trusted:
        _check_harmless(checkpoint)
    original = library.get_model_and_tokenizer

    def from_folder(**arguments: Any) -> tuple[Any, Any]:
        arguments["model_type"] = str(folder) if folder else arguments["model_type"]
        arguments["huggingface_config_path"] = None
        _check_classes(arguments, checkpoint.path)
        hugging_face.load_config(arguments["model_type"])
        model, tokenizer = original(**arguments)
        _check_weights(model, arguments["state_dict"], checkpoint.path)
        return model, tokenizer

    try:
        with quiet_transformers(), mock.patch.object(library, "get_model_and_tokenizer", from_folder):
            loaded = library.Detoxify(checkpoint=str(checkpoint.path), device=device)
    except UserError:
        raise
    except Exception as error:  # a foreign file may raise anything
        raise UserError(_explain(error, checkpoint, folder)) from error
    loaded.model.float().eval()
    loaded.tokenizer.model_max_length = longest_input(loaded.model.config, loaded.tokenizer)
    return loaded


def _download(model: str, path: Path) -> None:
    import torch
    from detoxify.detoxify import MODEL_URLS

    url = MODEL_URLS[model]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=_hash_prefix(path.name), progress=False)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"The weights of Detoxify's {model!r} are not on this machine and could not be downloaded ({error}). "
            f"Put {url} at {path}, or use another scorer, such as toxicity=linear."
        ) from None


def _hash_prefix(name: str) -> str:
    match = re.search(r"-([a-f0-9]{8,})\.", name)
    if match is None:
        raise UserError(f"{name} does not name its sha256, as torch.hub's files do, so it cannot be checked.")
    return match[1]


def _check_harmless(checkpoint: Checkpoint) -> None:
    import torch

    try:
        torch.load(checkpoint.path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged pickle may raise anything
        raise UserError(
            f"{checkpoint.path} holds more than plain weights, or is damaged ({type(error).__name__}). Loading it can "
            f"run any code that its maker put in. {remedy(checkpoint.sha256)}"
        ) from None


def _check_classes(arguments: dict[str, Any], path: Path) -> None:
    """Refuse class names other than models and tokenizers: transformers' auto classes run code from the folder."""
    import transformers

    expected = {
        "model_name": transformers.PreTrainedModel,
        "tokenizer_name": transformers.PreTrainedTokenizerBase,
    }
    for key, base in expected.items():
        found = getattr(transformers, str(arguments.get(key)), None)
        if not (isinstance(found, type) and issubclass(found, base)):
            raise UserError(
                f"The checkpoint {path} names {arguments.get(key)!r} as its {key}, which transformers does not have."
            )


def _check_weights(model: Any, state_dict: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint that lacks weights: transformers fills them with random numbers, and only logs it."""
    import torch

    for name, weight in model.state_dict().items():
        stored = state_dict.get(name)
        if stored is None or not torch.equal(weight.cpu(), stored.cpu().to(weight.dtype)):
            raise UserError(f"The checkpoint {path} does not hold the weight {name!r} that the configuration asks for.")


def _explain(error: Exception, checkpoint: Checkpoint, folder: Path | None) -> str:
    if isinstance(error, OSError) and folder is None:
        return (
            f"The configuration and tokenizer of {checkpoint.path}'s base model are not on this machine, and the "
            "Hugging Face hub does not provide them. Give a folder with its config.json and tokenizer files: "
            "config=FOLDER."
        )
    place = f" and the folder {folder}" if folder else ""
    return f"Cannot build a Detoxify model from {checkpoint.path}{place}: {type(error).__name__}: {error}"
