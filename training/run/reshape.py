"""A checkpoint of some ranks for a run of others: DeepSpeed's universal format, in which no state is cut by ranks."""

import contextlib
import io
import shutil
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from scorers.errors import IncompleteError, UserError
from training.run.distributed import import_deepspeed


def to_universal(source: Path, target: Path, checkpoint: Path | None = None) -> None:
    """Write DeepSpeed's checkpoint `source` to `target` anew, each parameter with its optimiser state whole.

    What lies at `target` is replaced. Errors name `checkpoint`, by default the folder of `source`. It needs room for
    about twice the weights and optimiser states, and the memory of one rank's part. The caller has
    `training.run.plain_loading` around it.

    Raises:
        UserError: a parameter has a name that leads out of the folder.
        IncompleteError: the disk is full or fails.
    """
    import_deepspeed()
    checkpoint = checkpoint or source.parent
    _check_names(source, checkpoint)
    from deepspeed.checkpoint import ds_to_universal

    settings = Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        # It wants the patterns of tensor parallelism, of which there is none here.
        inject_missing_state=True,
    )
    try:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        # It prints every step to a terminal that is not its own.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ds_to_universal.main(settings)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError where its file writer fails
        shutil.rmtree(target, ignore_errors=True)
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise IncompleteError(
            f"{checkpoint} could not be rewritten for another number of ranks, in {checkpoint.parent}: {reason}. It is "
            "untouched. Make room and run the same command again, or start as many ranks as wrote it."
        ) from error


def _check_names(source: Path, checkpoint: Path) -> None:
    # DeepSpeed makes a folder of each parameter's name, and of names that a mixture of experts lists elsewhere.
    for file in sorted(source.glob("*_states.pt")):
        for name in _keys(torch.load(file, map_location="cpu", mmap=True)):
            if name in ("", ".", "..", "autoep_layers", "ds_autoep_layers") or "/" in name or "\0" in name:
                raise UserError(
                    f"The checkpoint {checkpoint} names a parameter in a way that phf never does ({file.name}). It "
                    "is not rewritten for another number of ranks."
                )


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (key for key in value if isinstance(key, str))
        value = value.values()
    if not isinstance(value, (str, bytes, torch.Tensor)) and isinstance(value, Iterable):
        for each in value:
            yield from _keys(each)
