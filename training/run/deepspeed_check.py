"""A DeepSpeed JSON read by DeepSpeed itself, before any data are: a value it cannot take, or a name mistyped."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scorers.errors import UserError
from training.model.sources import first_line
from training.run.distributed import import_deepspeed


class _Read(dict[str, Any]):
    """A configuration that notes what it is asked for: DeepSpeed has no list of the names that it knows."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.names: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.names.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.names.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.names.add(key)
        return super().__getitem__(key)


def check_deepspeed(path: Path, theirs: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
    """Refuse what DeepSpeed would refuse, and what it would pass over: a name beside one that it knows.

    Args:
        path: of the user's file.
        theirs: what it holds.
        merged: the whole configuration. How many ranks there are is not known yet, and not checked.

    Raises:
        UserError: names the file, the key and what is wrong with it.
    """
    import_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig

    read = _Read({key: value for key, value in merged.items() if key != "train_batch_size"})
    try:
        DeepSpeedConfig(read)
    except Exception as error:  # noqa: BLE001 - DeepSpeed raises what comes: TypeError, AssertionError, its own
        raise UserError(
            f"training.deepspeed={path}: DeepSpeed cannot read it: {_reason(error)} Change the file."
        ) from None
    for key in theirs:
        near = difflib.get_close_matches(key, read.names, n=1, cutoff=0.8)
        if near and key not in read.names:
            raise UserError(f"{path} sets {key!r}, which DeepSpeed does not know; did you mean {near[0]!r}?")


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return first_line(error)
    detail = error.errors(include_url=False)[0]
    return f"{error.title}, {'.'.join(map(str, detail['loc']))}: {detail['msg']}."
