"""The command line of phf: it composes the commands of the parts, nothing else."""

import _signal  # type: ignore[import-not-found] # built in, unlike `signal`
import importlib.util
import os
import sys

_HOME = os.path.dirname(os.path.abspath(__file__))


def _stop_at_once(_number: int, _frame: object) -> None:
    """Until `take_signals`, which takes some imports, there is nothing to be stopped in good order."""
    os.write(2, b"Stopped: nothing was begun. The same command goes on.\n")
    os._exit(75)


def _start_safely() -> None:
    """Keep data, and packages of others that have our names, off the import path of this process and of its children.

    Until here nothing was imported that is not frozen into the interpreter. Only `python -m phf` without `-P` has
    already looked into the working directory.
    """
    if not sys.flags.safe_path:
        # The working directory, or the script's folder.
        del sys.path[0]
    if entries := os.environ.get("PYTHONPATH"):
        named = entries.split(os.pathsep)
        relative = {os.path.abspath(each) for each in named if not os.path.isabs(each)} - set(named)
        sys.path[:] = [each for each in sys.path if each not in relative]
    for package in ("scorers", "pipeline", "training", "infra"):
        _refuse_another(package)
    from scorers import interpreter

    interpreter.make_safe()
    # Of ranks one prints it, and none where `phf` started them, which has.
    first = "PHF_LAUNCHED" not in os.environ and os.environ.get("RANK", "0") == "0"
    if first and (shadows := interpreter.shadows()):
        sys.stderr.write(f"Warning: {interpreter.describe(shadows)}\n")


def _refuse_another(package: str) -> None:
    """End the command where a package of phf would be taken from elsewhere, or from nowhere."""
    ours = os.path.join(_HOME, package)
    if not os.path.isdir(ours):
        # A cluster was sent the packages: each lies in a folder of its own, before all others.
        return
    spec = importlib.util.find_spec(package)
    found = [*(spec.submodule_search_locations or ()), spec.origin or ""] if spec is not None else []
    if not any(os.path.realpath(each) == os.path.realpath(ours) for each in found):
        where = f"another one, {found[0]}, stands before it: take its folder off PYTHONPATH" if found else "install phf"
        sys.stderr.write(f"Error: phf cannot import its own package {package} ({ours}): {where}.\n")
        sys.exit(2)


_COMMAND = __name__ == "__main__" or os.path.basename(sys.argv[0]) == "phf"
if _COMMAND:
    _numbers = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGUSR1)
    for _number in _numbers:
        # As nohup leaves it.
        if _number != _signal.SIGHUP or _signal.getsignal(_number) != _signal.SIG_IGN:
            _signal.signal(_number, _stop_at_once)
    # Ranks are started with these blocked, so that one that comes before this does not end them in Python's words.
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _numbers)
    _start_safely()

from scorers.errors import EXIT_STOPPED
from scorers.stopping import StopRequest, end_process, take_signals

if _COMMAND:
    # Before the imports below, which take long enough for a signal to come.
    take_signals()

from typing import Annotated

import typer

from pipeline.cli import app as pipeline_app
from pipeline.cli import config_app as pipeline_config
from scorers.cli import app as scorers_app
from scorers.console import command
from scorers.paths import require_utf8
from scorers.streams import set_up_streams
from training.cli import app as training_app
from training.cli import config_app as training_config
from training.distributed.launch import LAUNCHERS

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
config_app = typer.Typer(no_args_is_help=True, help="Show every setting of a command, with its default and meaning.")
for part in (pipeline_config, training_config):
    config_app.add_typer(part)
app.add_typer(config_app, name="config", rich_help_panel="Settings")
# Training knows nothing of Ray: what starts its ranks there is above it, and imported only when it is asked for.
LAUNCHERS["ray"] = "infra.on_ray.train:launch"


def _run() -> None:
    for argument in sys.argv[1:]:
        require_utf8(argument, "argument")
    app()


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
        command(_run, changes=None)()
    except typer.Exit as left:
        status = left.exit_code
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    except StopRequest as request:
        # Between the end of a command's work and here.
        sys.stderr.write(f"Stopped: received {request}. The same command goes on.\n")
        status = EXIT_STOPPED
    end_process(status)


if __name__ == "__main__":
    main()
