"""Whether an output folder can be trained into: a new one, a run that goes on, or something else that is refused."""

from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from scorers.errors import UserError
from training.config import TrainConfig
from training.loop.facts import semantic_difference
from training.runs.folder import SHARED_MARK, RunFacts, RunFolder

# What may change between the start of a run and its resumption: nothing here changes what is learned.
# The dataset's and the tokenizer's place may; that their content has not is checked by fingerprints.
_FREE = (
    "output",
    "data.dataset",
    "data.tokenizer",
    "data.vocab_size",
    "data.store",
    "data.allow_lossy_tokenizer",
    "data.mixture.*.dataset",
    "data.mixture.*.store",
    "training.micro_batch_size",
    "training.activation_checkpointing",
    "training.compile",
    "training.offload",
    "model.attention",
    "model.kernels",
    "model.pad_vocab_to",
    "training.hang_timeout_s",
    "training.log_every",
    "training.save_every",
    "training.evaluate_every",
    "training.validate_every",
    "training.keep_checkpoints",
    "training.keep_every",
    "training.keep_best",
    "training.best_metric",
    "training.best_mode",
    "training.save_async",
    "training.max_skipped",
    "evaluation",
    "tracking",
)


def check_folder(folder: RunFolder) -> bool:
    """Whether the folder holds a run to go on with.

    Raises:
        UserError: it holds something else, is no folder, or is inside another run.
    """
    for parent in folder.path.absolute().parents:
        if RunFolder(parent).facts.is_file():
            raise UserError(
                f"--output {folder.path} is inside the folder of another run, {parent}. Give a folder beside it; a run "
                "that was set aside there goes on where it is moved or copied to."
            )
    if folder.facts.is_file():
        return True
    if folder.path.exists() and not folder.path.is_dir():
        raise UserError(f"--output {folder.path} is a file. Give a folder that is new, empty, or a run to go on with.")
    # `config.yaml` is written before `run.json`: alone, it is of a run that ended in between. A network's file system
    # may still list what ranks have looked for on it (`infra.on_ray.rank`).
    # What was half written (`training.runs.folder.write_atomically`) stays where a process was killed meanwhile.
    half_written = (f".{file.name}." for file in (folder.config, folder.facts))
    expected = (folder.config.name, folder.lock.name, SHARED_MARK, *half_written)
    if folder.path.is_dir() and any(not path.name.startswith(expected) for path in folder.path.iterdir()):
        raise UserError(
            f"--output {folder.path} holds something that is not a training run. "
            "Give a folder that is new, empty, or a run to go on with."
        )
    return False


def changed_settings(folder: RunFolder, config: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that are not those of the run, of those that may not simply change: by name, then and now."""
    then = _flat(folder.read_config().model_dump(mode="json"))
    now = _flat(config.model_dump(mode="json"))
    old = folder.read_facts()
    # Runs of earlier versions have not written down what became of these two: then the settings themselves count.
    known = {"training.deepspeed": old.deepspeed, "training.precision": old.precision}
    free = {key for key, fact in known.items() if fact is not None}
    return {
        key: (then.get(key), now.get(key))
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and key not in free and not _is_free(key)
    }


def check_same(
    folder: RunFolder, config: TrainConfig, facts: RunFacts, may_change: Collection[str] = (), remedy: str | None = None
) -> None:
    """Refuse to go on with a run under another configuration or on other data.

    Args:
        folder: of the run.
        config: the settings now.
        facts: as they are now.
        may_change: settings that the run can go on with changed.
        remedy: a sentence more, on what was changed.

    Raises:
        UserError: lists every difference.
    """
    lines = [
        f"{key}: {then!r} in the run, {now!r} now"
        for key, (then, now) in changed_settings(folder, config).items()
        if key not in may_change
    ]
    lines += semantic_difference(folder.read_facts(), facts)
    if lines:
        shown = "\n".join(f"  {line}" for line in lines)
        raise UserError(
            f"{folder.path} was started with another configuration:\n{shown}\n{f'{remedy} ' if remedy else ''}"
            "Give the same settings to go on with it, or another --output to start anew."
        )


def _is_free(key: str) -> bool:
    return any(fnmatchcase(key, free) or key.startswith(f"{free}.") for free in _FREE)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(_items(values, ""))


def _items(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            yield from _items({str(number): each for number, each in enumerate(value)}, f"{prefix}{key}.")
        elif isinstance(value, Mapping) and value:
            yield from _items(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
