"""Load a classifier of transformers from a folder or the Hugging Face hub, with checks before it is loaded.

Nothing that is loaded can run code: no code of a repository is trusted, and weights are safetensors, or pickles that
the user vouches for.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scorers import hugging_face
from scorers.classifiers.transformers_models import quiet_transformers
from scorers.errors import UserError
from scorers.fingerprint import file_sha256
from scorers.printing import printable
from scorers.trusted_pickles import remedy

# Files to download from a repository: no code, no pickles, no weights of other frameworks.
_FILES = ["*.json", "*.txt", "*.model", "model*.safetensors"]
# A tokenizer has at least one of these.
_VOCABULARIES = ["tokenizer.json", "vocab.*", "*.model"]
_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Weights:
    """A model's folder, and the sha256 of its weights by file name: safetensors, or pickles that the user trusts."""

    folder: Path
    sha256: dict[str, str]
    pickled: bool


def locate(model: str, revision: str | None, *, download: bool = True, kind: str = "classifier") -> Path:
    """Return a model's folder: the given one, or the one in the hub's cache, downloaded if it is missing.

    Args:
        model: a folder, or a name on the hub such as `unitary/toxic-bert`.
        revision: branch, tag or commit of a model on the hub; None for what the cache has, or the newest.
        download: whether it may be downloaded.
        kind: of the scorer, for messages.

    Raises:
        UserError: there is no such folder or model, the hub does not answer, or the model would need a download.
    """
    if not model:
        label = ",label=LABEL" if kind == "classifier" else ""
        raise UserError(f"The scorer {kind!r} needs a model: COLUMN={kind}:FOLDER{label}.")
    folder = Path(model)
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"The option revision applies to models on the hub, but {model} is a folder.")
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} is not a model's folder: it has no config.json.")
        hugging_face.refuse_devices(model)
        return folder
    if folder.is_absolute() or not _NAME.fullmatch(model):
        raise UserError(f"{model} is neither a folder nor a name of a model on the Hugging Face hub.")
    return _from_hub(model, revision, download=download, kind=kind)


def find_weights(folder: Path, sha256: str | None, trusted: Collection[str] = ()) -> Weights:
    """Find the weights in a model's folder and check their hash.

    Args:
        folder: the model's folder.
        sha256: the expected hash; None for any.
        trusted: hashes of pickles that may be loaded.

    Raises:
        UserError: there are none, their hash differs, or they are an untrusted pickle.
    """
    files = sorted(folder.glob("model*.safetensors"))
    pickled = not files
    if pickled:
        files = sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise UserError(f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin.")
    digests = {each.name: file_sha256(each) for each in files}
    if sha256 is not None and (len(files) > 1 or sha256.lower() not in digests.values()):
        found = ", ".join(f"{name} {digest}" for name, digest in digests.items())
        raise UserError(f"The weights in {folder} have the sha256 {found}, not {sha256}; they are not loaded.")
    for name, digest in digests.items() if pickled else ():
        if digest not in trusted:
            raise UserError(
                f"The weights {folder / name} are a pickle, which can run any code that its maker put in. Save the "
                f"model as safetensors. {remedy(digest)}"
            )
    return Weights(folder, digests, pickled)


def refuse_other_architectures(folder: Path, suffix: str, what: str) -> None:
    """Refuse a model whose configuration names an architecture without the suffix.

    Its weights may fit all the same: the heads of BERT's sequence and token classifiers have the same names and shapes.

    Raises:
        UserError: it does.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        named = config.get("architectures") or []
        other = [str(each) for each in named if not str(each).endswith(suffix)]
    except (OSError, ValueError, AttributeError, TypeError):
        return  # loading it names the problem
    if other:
        raise UserError(f"The model in {folder} is a {printable(other[0][:80])}, not {what}.")


def load(found: Weights, task: str = "SequenceClassification") -> tuple[Any, Any]:
    """Load the classifier, in evaluation mode and float32, and its tokenizer; `task` is in its class's name.

    Raises:
        UserError: there is no tokenizer, it is another kind of model, it needs code of its own, or weights are missing.
    """
    import torch
    import transformers

    folder = str(found.folder)
    kind = {"SequenceClassification": "sequence classifier", "TokenClassification": "token classifier"}[task]
    try:
        with quiet_transformers():
            model, report = hugging_face.load_model(
                getattr(transformers, f"AutoModelFor{task}"),
                folder,
                local_files_only=True,
                use_safetensors=not found.pickled,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, in a sentence of ours
            )
    except UserError as error:
        raise UserError(f"Cannot load a {kind} from {folder}: {error}") from None
    except Exception as error:  # a foreign folder may raise anything
        raise UserError(f"Cannot load a {kind} from {folder}: {type(error).__name__}: {error}") from error
    other = sorted(str(name) for name, *_ in report["mismatched_keys"])
    if other:
        raise UserError(
            f"The weights in {folder} do not have the shapes of its config.json: {printable(other[0])} "
            f"({len(other)} in all). Does its id2label name each label? It has {len(model.config.id2label):,}."
        )
    absent = sorted(report["missing_keys"])
    if absent:
        raise UserError(
            f"The weights in {folder} lack {absent[0]} ({len(absent)} in all), which would be random numbers: is it a "
            f"{kind}, or the base model of one?"
        )
    if not any(path for pattern in _VOCABULARIES for path in found.folder.glob(pattern)):
        # transformers would build a tokenizer without a vocabulary, to which every word is unknown.
        raise UserError(f"{folder} has no tokenizer. Save it beside the model: tokenizer.save_pretrained({folder!r}).")
    try:
        with quiet_transformers():
            tokenizer = hugging_face.load_tokenizer(folder, local_files_only=True)
    except UserError:
        raise
    except Exception as error:  # as above
        raise UserError(f"The tokenizer in {folder} cannot be loaded: {type(error).__name__}: {error}") from error
    return model.eval(), tokenizer


def label_index(config: Any, label: str | None, folder: Path) -> int:
    """Return the output of a label, given by its name in the configuration or its number; None for the only one.

    Raises:
        UserError: there is no such label, or none is given and there are several; the message lists them.
    """
    names = {int(index): str(name) for index, name in config.id2label.items()}
    listed = ", ".join(f"{index} {name}" for index, name in sorted(names.items()))
    if label is None:
        if len(names) == 1:
            return 0
        raise UserError(f"Name the label of {folder} that is misaligned: label=NAME. It has {listed}.")
    exact = [index for index, name in names.items() if name == label]
    folded = [index for index, name in names.items() if name.casefold() == label.casefold()]
    for found in (exact, folded):
        if len(found) == 1:
            return found[0]
    if label.isdecimal() and int(label) in names:
        return int(label)
    raise UserError(f"The model in {folder} has no label {label!r}; its labels are {listed}.")


def _from_hub(model: str, revision: str | None, *, download: bool, kind: str) -> Path:
    import huggingface_hub

    def snapshot(local: bool) -> Path:
        path = huggingface_hub.snapshot_download(
            model, revision=revision, allow_patterns=_FILES, local_files_only=local
        )
        return Path(path)

    try:
        return snapshot(local=True)
    except Exception as error:
        if not download:
            raise UserError(
                f"The model {model!r} is neither a folder nor in the hub's cache on this machine. It is downloaded "
                "when the scorer is first used."
            ) from error
    try:
        # Ask the hub once first, because a download retries for half a minute.
        huggingface_hub.HfApi().model_info(model, revision=revision, timeout=_TIMEOUT_S)
        with quiet_transformers():
            return snapshot(local=False)
    except Exception as error:
        raise UserError(
            f"The model {model!r}{f' at {revision}' if revision else ''} is not a folder, and the Hugging Face hub "
            f"does not provide it ({type(error).__name__}): no such model, no access, or no network. Give a folder "
            f"that has it: {kind}:/models/FOLDER."
        ) from error
