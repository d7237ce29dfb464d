"""Check whether a run can train into an output folder: it is new, or holds the same run; anything else is refused."""

from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from scorers.errors import UserError
from training.config import ResolvedConfig
from training.loop.build_facts import semantic_difference
from training.runs.facts import RunFacts
from training.runs.folder import SHARED_MARK, RunFolder

# Settings that may change when a run is resumed, because they do not change what is learned. The dataset and the
# tokenizer may move; fingerprints check that their content is the same.
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
    """Whether the folder holds a run that can be resumed.

    Raises:
        UserError: it holds something else, is not a folder, or is inside another run.
    """
    for parent in folder.path.absolute().parents:
        if RunFolder(parent).facts.is_file():
            raise UserError(
                f"--output {folder.path} is inside the folder of another run, {parent}. Give a folder beside it. To "
                "resume a run that was set aside there, move or copy it out first."
            )
    if folder.facts.is_file():
        return True
    if folder.path.exists() and not folder.path.is_dir():
        raise UserError(f"--output {folder.path} is a file. Give a folder that is new, empty, or a run to resume.")
    # `config.yaml` is written before `run.json`: alone, it belongs to a run that was interrupted in between. A network
    # file system may still list the marks by which ranks check that they share it (`infra.on_ray.rank`). Temporary
    # files of `training.disk.write_atomically` stay where a process was killed while it wrote.
    half_written = (f".{file.name}." for file in (folder.config, folder.facts))
    expected = (folder.config.name, folder.lock.name, SHARED_MARK, *half_written)
    if folder.path.is_dir() and any(not path.name.startswith(expected) for path in folder.path.iterdir()):
        raise UserError(
            f"--output {folder.path} holds something that is not a training run. "
            "Give a folder that is new, empty, or a run to resume."
        )
    return False


def changed_settings(folder: RunFolder, config: ResolvedConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that differ from those of the run and may not freely change: by name, the old and the new value."""
    then = _flat(folder.read_config().model_dump(mode="json"))
    now = _flat(config.model_dump(mode="json"))
    old = folder.read_facts()
    # Runs of earlier versions did not record what these two resolved to: compare the settings themselves then.
    known = {"training.deepspeed": old.deepspeed, "training.precision": old.precision}
    free = {key for key, fact in known.items() if fact is not None}
    return {
        key: (then.get(key), now.get(key))
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and key not in free and not _is_free(key)
    }


def check_same(
    folder: RunFolder,
    config: ResolvedConfig,
    facts: RunFacts | None,
    may_change: Collection[str] = (),
    remedy: str | None = None,
) -> None:
    """Refuse to resume a run under another configuration or on other data.

    Args:
        folder: the folder of the run.
        config: the settings now.
        facts: the facts computed from the settings and the data now; None to compare settings only.
        may_change: settings that may differ.
        remedy: a sentence to add to the error.

    Raises:
        UserError: lists every difference.
    """
    lines = [
        f"{key}: {then!r} in the run, {now!r} now"
        for key, (then, now) in changed_settings(folder, config).items()
        if key not in may_change
    ]
    lines += [] if facts is None else semantic_difference(folder.read_facts(), facts)
    if lines:
        shown = "\n".join(f"  {line}" for line in lines)
        raise UserError(
            f"{folder.path} was started with another configuration:\n{shown}\n{f'{remedy} ' if remedy else ''}"
            "Give the same settings to resume it, or another --output to start a new run."
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
