"""The `phf` command line: it composes the Typer apps of the parts."""

import _signal  # type: ignore[import-not-found] # built in, unlike `signal`
import importlib.util
import os
import sys

_HOME = os.path.dirname(os.path.abspath(__file__))


def _stop_at_once(_number: int, _frame: object) -> None:
    """End the process on a signal that comes before `take_signals`: no work has begun yet."""
    os.write(2, b"Stopped before any work began. The same command continues.\n")
    os._exit(75)


def _start_safely() -> None:
    """Keep data, and other packages with our names, off the import path of this process and its children.

    Up to this call only modules frozen into the interpreter have been imported. Only `python -m phf` without `-P` has
    already searched the working directory.
    """
    if not sys.flags.safe_path:
        # The working directory, or the script's folder.
        del sys.path[0]
    if entries := os.environ.get("PYTHONPATH"):
        named = entries.split(os.pathsep)
        relative = {os.path.abspath(each) for each in named if not os.path.isabs(each)} - set(named)
        sys.path[:] = [each for each in sys.path if each not in relative]
    for package in ("scorers", "pipeline", "training", "infra"):
        _require_own(package)
    from scorers import interpreter

    interpreter.make_safe()
    # Only one rank prints the warning, and none does where `phf` started the ranks: it has printed it already.
    first = "PHF_LAUNCHED" not in os.environ and os.environ.get("RANK", "0") == "0"
    if first and (shadows := interpreter.find_shadows()):
        sys.stderr.write(f"Warning: {interpreter.describe(shadows)}\n")


def _require_own(package: str) -> None:
    """Exit with status 2 if Python would import this package of phf from another place, or not find it."""
    ours = os.path.join(_HOME, package)
    if not os.path.isdir(ours):
        # Ray ships each package to the nodes in a folder of its own, which comes first on the path.
        return
    spec = importlib.util.find_spec(package)
    found = [*(spec.submodule_search_locations or ()), spec.origin or ""] if spec is not None else []
    if not any(os.path.realpath(each) == os.path.realpath(ours) for each in found):
        where = f"{found[0]} comes first on the path: take its folder off PYTHONPATH" if found else "install phf"
        sys.stderr.write(f"Error: phf cannot import its own package {package} ({ours}): {where}.\n")
        sys.exit(2)


_COMMAND = __name__ == "__main__" or os.path.basename(sys.argv[0]) == "phf"
if _COMMAND:
    _numbers = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGUSR1)
    for _number in _numbers:
        # Leave SIGHUP ignored under nohup.
        if _number != _signal.SIGHUP or _signal.getsignal(_number) != _signal.SIG_IGN:
            _signal.signal(_number, _stop_at_once)
    # Ranks start with these signals blocked, so that an early one does not end them with Python's own message.
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _numbers)
    _start_safely()

from scorers.errors import EXIT_STOPPED
from scorers.stopping import StopRequest, end_process, take_signals

if _COMMAND:
    # Before the imports below, which take long enough for a signal to arrive.
    take_signals()

from typing import Annotated

import typer

from infra.cli import make_app
from pipeline.cli import app as pipeline_app
from pipeline.cli import config_app as pipeline_config
from pipeline.commands.export import TOKEN_FORMATS
from pipeline.commands.label import label
from scorers.cli import app as scorers_app
from scorers.console import command
from scorers.paths import require_utf8
from scorers.stdio import set_up_streams
from training.cli import app as training_app
from training.cli import config_app as training_config
from training.commands.sweep import sweep
from training.commands.train import train
from training.distributed.launch import LAUNCHERS

app = typer.Typer(
    name="phf",
    help="Pretrain language models with human preferences: label a corpus, train on it, measure what it gained.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from scorers.fingerprint import library_versions

        typer.echo(f"phf {library_versions('phf')['phf']}")
        raise typer.Exit


@app.callback(help=app.info.help)
def options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of `phf` itself."""


infra_app = make_app(label, train, sweep)
for part in (pipeline_app, training_app, infra_app, scorers_app):
    app.add_typer(part)
config_app = typer.Typer(no_args_is_help=True, help="Show every setting of a command, with its default and meaning.")
for part in (pipeline_config, training_config):
    config_app.add_typer(part)
app.add_typer(config_app, name="config", rich_help_panel="Settings")
# `training` does not import Ray: the Ray launcher lives in `infra` and is imported only when it is used.
LAUNCHERS["ray"] = "infra.on_ray.launch:launch"
# `pipeline` does not import tokenizers, which training brings.
TOKEN_FORMATS["megatron"] = "training.export.megatron:export_megatron"


def _run() -> None:
    for argument in sys.argv[1:]:
        require_utf8(argument, "argument")
    app()


def main() -> None:
    """Entry point of the `phf` command."""
    take_signals()
    # The deepspeed launcher puts `--local_rank=N` before the command; we read LOCAL_RANK, which it sets too.
    sys.argv[1:] = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank=")]
    # Set before torch loads OpenMP. By default its threads spin for milliseconds while they wait for each other: on
    # shared cores a training step then took six times as long; on idle cores it makes no difference.
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
        # A signal came after the command's work had ended.
        sys.stderr.write(f"Stopped: received {request}. The same command continues.\n")
        status = EXIT_STOPPED
    end_process(status)


if __name__ == "__main__":
    main()
