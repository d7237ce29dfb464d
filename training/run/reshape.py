"""A checkpoint of some ranks for a run of others: DeepSpeed's universal format, in which no state is cut by ranks."""

import contextlib
import io
import shutil
from argparse import Namespace
from pathlib import Path

from scorers.errors import IncompleteError
from training.run.distributed import import_deepspeed


def to_universal(source: Path, target: Path) -> None:
    """Write DeepSpeed's checkpoint `source` to `target` anew, each parameter with its optimiser state whole.

    What lies at `target` is replaced. It needs room for about twice the weights and optimiser states, and the memory of
    one rank's part.

    Raises:
        IncompleteError: the disk is full or fails.
    """
    import_deepspeed()
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
            f"{source.parent} could not be rewritten for another number of ranks, in {target.parent}: {reason}. It is "
            "untouched. Make room and run the same command again, or start as many ranks as wrote it."
        ) from error
