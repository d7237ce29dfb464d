"""Run a labelling command with its progress display or log, and print its summary."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from scorers.errors import UserError

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.labelling.label import Summary
    from pipeline.labelling.monitoring.console import Reporter
    from pipeline.labelling.monitoring.logs import RunLog


def run_and_show(settings: "RunConfig", run: "Callable[[Reporter, RunLog], Summary]", *, as_json: bool) -> None:
    """Run, print the summary to stdout, and check the quarantine limit.

    Raises:
        UserError: `run` failed, or QuarantineLimitError: too many entries in quarantine.
        typer.Exit: instead of these if the log on stderr has already reported the error.
    """
    from pipeline.commands.summary import check_quarantine, show_summary, summary_facts
    from pipeline.labelling.monitoring.console import reporting
    from pipeline.labelling.monitoring.log_file import STDERR
    from pipeline.labelling.workers.secrecy import forbid_core_dumps
    from pipeline.quarantine_limit import QuarantineLimit
    from scorers.console import print_json
    from scorers.terminal import Terminal

    forbid_core_dumps()
    try:
        with reporting(settings, Terminal(stderr=True)) as (reporter, log):
            summary = run(reporter, log)
            if as_json:
                print_json(summary_facts(summary))
            else:
                show_summary(summary, Terminal())
            check_quarantine(summary, QuarantineLimit.parse(settings.execution.max_quarantined))
    except UserError as error:
        if settings.execution.log != STDERR:
            raise
        # The last line of the log has reported the error.
        raise typer.Exit(error.exit_code) from None
