"""Errors that a user can act on, and the exit statuses of the commands.

Every error that a user may meet derives from `UserError` and carries the exit status of the command. The command line
prints the message and nothing else; a traceback that reaches a user is a defect. A message says what was wrong, where
(file, key, record) and what to do, and never quotes the corpus.
"""

EXIT_USAGE = 2
EXIT_QUARANTINE = 3
EXIT_INCOMPLETE = 4
EXIT_DEFECT = 70
EXIT_STOPPED = 75


class UserError(Exception):
    """Bad usage, configuration or input, refused before any work. Exit status 2."""

    exit_code: int = EXIT_USAGE
    prefix: str = "Error"


class QuarantineLimitError(UserError):
    """More records were quarantined than allowed; everything else is labelled and sealed. Exit status 3."""

    exit_code = EXIT_QUARANTINE
    prefix = "Done, but not all of it could be labelled"


class IncompleteError(UserError):
    """The work could not be finished; running the same command again resumes it. Exit status 4."""

    exit_code = EXIT_INCOMPLETE
    prefix = "Stopped"


class StoppedError(UserError):
    """Stopped cleanly and resumable, on request or because a newer run took over. Exit status 75."""

    exit_code = EXIT_STOPPED
    prefix = "Stopped"
