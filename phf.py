"""The command line of phf: it composes the commands of the parts, nothing else."""

import os
import sys
from pathlib import Path

from scorers.errors import EXIT_STOPPED
from scorers.stopping import StopRequest, leave, take_signals

if __name__ == "__main__" or Path(sys.argv[0]).name == "phf":
    # Before the imports below, which take long enough for a signal to come.
    take_signals()

from typing import Annotated

import typer

from pipeline.cli import app as pipeline_app
from scorers.cli import app as scorers_app
from scorers.console import command
from scorers.streams import set_up_streams
from training.cli import app as training_app
from training.run.launch import LAUNCHERS

app = typer.Typer(
    name="phf",
    help="Pretrain language models with human preferences: label a corpus, train on it, measure what it gained.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _tell_version(asked: bool) -> None:
    if asked:
        from scorers.fingerprint import library_versions

        typer.echo(f"phf {library_versions('phf')['phf']}")
        raise typer.Exit


@app.callback(help=app.info.help)
def options(
    _version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    """Options of `phf` itself."""


for part in (pipeline_app, training_app, scorers_app):
    app.add_typer(part)
# Training knows nothing of Ray: what starts its ranks there is above it, and imported only when it is asked for.
LAUNCHERS["ray"] = "infra.on_ray.train:launch"


def main() -> None:
    """Entry point of the `phf` command."""
    take_signals()
    # The deepspeed launcher puts `--local_rank=N` before the command; it also sets LOCAL_RANK, which is what is read.
    sys.argv[1:] = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank=")]
    # Before torch loads OpenMP. Its threads otherwise wait for each other by spinning for milliseconds: on cores that
    # are shared with anything else, a training step then took six times as long; on idle ones it makes no difference.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    set_up_streams()
    try:
        command(app, changes=None)()
    except typer.Exit as left:
        status = left.exit_code
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    except StopRequest as request:
        # Between the end of a command's work and here.
        sys.stderr.write(f"Stopped: received {request}. The same command goes on.\n")
        status = EXIT_STOPPED
    leave(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
