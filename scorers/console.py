"""What all commands share: turn errors into exit statuses, print JSON, and set up the logs."""

import errno
import functools
import inspect
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

import structlog
import typer
from typer.exceptions import TyperException

from scorers.errors import EXIT_DEFECT, UserError
from scorers.printing import log_values, message, printable_json
from scorers.stopping import declare_read_only, find_interruption, stoppable

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def command(function: Callable[Parameters, Result], *, changes: bool | None = False) -> Callable[Parameters, Result]:
    """Decorate a Typer command: print errors to stderr, and exit with the status of the error.

    The status is a `UserError`'s own, and `EXIT_DEFECT` for any other exception.

    Args:
        function: the command.
        changes: whether it writes output that running it again completes, so that a signal ends it with 75; None for
            the whole `phf` command line, which leaves that to its commands.
    """

    @functools.wraps(function)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            try:
                if changes:
                    with stoppable():
                        return function(*args, **kwargs)
                if changes is False:
                    declare_read_only()
                return function(*args, **kwargs)
            finally:
                sys.stdout.flush()  # Python would end with a status of its own where this fails
        except UserError as error:
            fail(error)
        except KeyboardInterrupt:
            _interrupted()
        except (typer.Exit, typer.Abort, TyperException):
            raise
        except Exception as error:  # noqa: BLE001 - reported as what it is
            if find_interruption(error, KeyboardInterrupt):
                _interrupted()
            if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
                from scorers.paths import escape_path  # imports pydantic, which help does not need

                # Of a path that a user gave: every look at it fails, also one that only asks whether it is there.
                fail(UserError(f"{escape_path(str(error.filename))}: a name in it is too long for the file system."))
            if os.environ.get("PHF_TRACEBACK"):
                traceback.print_exc()
            # Leave out the message of an unexpected error: it may quote the corpus.
            sys.stderr.write(f"Error: {_origin(error)}. This is a defect of phf; PHF_TRACEBACK=1 shows where it is.\n")
            raise typer.Exit(EXIT_DEFECT) from None

    run.__doc__ = _filled(function.__doc__ or "")
    return run


def _filled(text: str) -> str:
    """Join each paragraph of a help text into one line, so that it fills any width; keep lists as they are."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        each if re.search(r"^(\s|[-*] )", each, re.MULTILINE) else each.replace("\n", " ") for each in paragraphs
    )


def _interrupted() -> NoReturn:
    sys.stderr.write("Interrupted.\n")
    raise typer.Exit(130) from None


def _origin(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno} ({frame.name})"


def fail(error: UserError) -> NoReturn:
    """Print the error and exit with its status."""
    sys.stderr.write(f"{error.prefix}: {message(str(error))}\n")
    raise typer.Exit(error.exit_code)


def print_json(value: Any) -> None:
    """Print one JSON document on stdout; raise `ValueError` for NaN and infinity, which JSON does not have."""
    unicode = sys.stdout.encoding.lower().startswith("utf")
    text = json.dumps(value, indent=2, ensure_ascii=not unicode, allow_nan=False)
    sys.stdout.write(printable_json(text) + "\n")


def set_up_logs(*, verbose: bool = False, as_json: bool | None = None) -> None:
    """Log to stderr: JSON lines if `as_json` is true or stderr is not a terminal, else coloured text.

    If `as_json` is None, the environment variable `PHF_LOG=json|text` decides first.
    """
    if as_json is None:
        choice = os.environ.get("PHF_LOG", "")
        as_json = choice == "json" if choice in {"json", "text"} else not sys.stderr.isatty()
    renderer: Any = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            log_values,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
