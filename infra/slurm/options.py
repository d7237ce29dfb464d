"""The options of jobs on Slurm, and what they make of sbatch's."""

import re
from dataclasses import dataclass
from typing import Annotated

import typer

from infra.submission.job import Job, Kind
from infra.submission.options import Cpus, Gpus, Memory, Nodes
from scorers.errors import UserError
from scorers.printing import printable

_PANEL = "On Slurm"
_NAME = re.compile(r"[\w.@+,-]+", re.ASCII)
_SIZE = re.compile(r"\d+[KMGT]?", re.ASCII)
_OPTION = re.compile(r"--([a-z][a-z-]*)(=[^\x00-\x20\"'\\#]+)?", re.ASCII)
# Formats of https://slurm.schedmd.com/sbatch.html#OPT_time: minutes, [[hours:]minutes:]seconds, days-hours[:…].
_TIME = re.compile(r"(?:(\d+)-(\d+)(?::(\d+))?(?::(\d+))?|(\d+)(?::(\d+))?(?::(\d+))?)", re.ASCII)
# What the script itself depends on, and options that would start something else.
_OURS = frozenset(
    {
        *("array", "chdir", "dependency", "error", "export-file", "input", "job-name", "no-requeue", "open-mode"),
        *("output", "parsable", "requeue", "signal", "wait", "wrap"),
        # These have options of their own.
        *("account", "cpus-per-task", "gpus-per-node", "mem", "nodes", "ntasks", "ntasks-per-node"),
        *("partition", "time"),
    }
)


@dataclass(frozen=True)
class SlurmOptions:
    """The options of `--on slurm`."""

    partition: Annotated[
        str | None,
        typer.Option("--partition", metavar="NAME", help="Partition. (default: Slurm's)", rich_help_panel=_PANEL),
    ] = None
    account: Annotated[
        str | None,
        typer.Option("--account", metavar="NAME", help="Account. (default: Slurm's)", rich_help_panel=_PANEL),
    ] = None
    nodes: Nodes = None
    tasks: Annotated[
        int | None,
        typer.Option(
            "--tasks", min=1, metavar="N", help="Ranks per node. (default: one per GPU, or 1)", rich_help_panel=_PANEL
        ),
    ] = None
    cpus: Cpus = None
    gpus: Gpus = None
    memory: Memory = None
    time: Annotated[
        str | None,
        typer.Option(
            "--time",
            metavar="TIME",
            help="Time limit of an attempt, as for sbatch, such as 90 (minutes) or 1-00:00:00. (default: 24:00:00)",
            rich_help_panel=_PANEL,
        ),
    ] = None
    stop_before: Annotated[
        int | None,
        typer.Option(
            "--stop-before",
            min=1,
            max=65535,
            metavar="SECONDS",
            help="Seconds before the time limit at which the job is asked to stop; then it is requeued, and continues. "
            "Give it the time that a checkpoint takes. (default: 120 to label, else 300)",
            rich_help_panel=_PANEL,
        ),
    ] = None
    sbatch_option: Annotated[
        list[str] | None,
        typer.Option(
            "--sbatch-option",
            metavar="OPTION",
            help="Any other option of sbatch, such as --qos=low; repeatable.",
            rich_help_panel=_PANEL,
        ),
    ] = None

    def ranks_per_node(self, kind: Kind) -> int:
        """Return the tasks of a node; label and sweep have one."""
        return 1 if kind is not Kind.TRAIN else self.tasks or self.gpus or 1

    def lines(self, job: Job) -> list[str]:
        """Return the options of sbatch that ask for resources and signals.

        Raises:
            UserError: an option is not of its form, contradicts another, or means nothing for the job.
        """
        for name, value, form in (
            ("partition", self.partition, _NAME),
            ("account", self.account, _NAME),
            ("memory", self.memory, _SIZE),
        ):
            if value is not None and not form.fullmatch(value):
                raise UserError(f"--{name} {printable(value)!r} is not of the form that Slurm takes.")
        self._check_kind(job.kind)
        limit, lead = self.time or "24:00:00", self._lead(job.kind)
        if _seconds(limit) <= lead:
            raise UserError(
                f"--time {limit} is not longer than the {lead} s before the limit in which the job saves its work. "
                "Give more time, or a smaller --stop-before if saving takes less."
            )
        lines = [
            f"--partition={self.partition}" if self.partition else "",
            f"--account={self.account}" if self.account else "",
            f"--nodes={self.nodes or 1}",
            f"--ntasks-per-node={self.ranks_per_node(job.kind)}",
            f"--cpus-per-task={self.cpus or 8}",
            # Not --gpus-per-task: every rank must see the GPUs of its node.
            f"--gpus-per-node={self.gpus}" if self.gpus else "",
            f"--mem={self.memory}" if self.memory else "",
            f"--time={limit}",
            "--requeue",
            "--open-mode=append",
        ]
        return [*filter(None, lines), *self._further()]

    def signal(self, kind: Kind, *, script: bool) -> str:
        """Return the option that asks for a signal before the time limit, to the script or to all ranks."""
        return f"--signal=B:TERM@{self._lead(kind)}" if script else f"--signal=USR1@{self._lead(kind)}"

    def _lead(self, kind: Kind) -> int:
        return self.stop_before or (120 if kind is Kind.LABEL else 300)

    def _check_kind(self, kind: Kind) -> None:
        if self.tasks is not None and kind is not Kind.TRAIN:
            raise UserError(f"--tasks sets the ranks of `phf train` per node; leave it out with `phf {kind}`.")
        if self.nodes is not None and kind is Kind.SWEEP:
            raise UserError("Each run of a sweep takes one node; leave --nodes out.")

    def _further(self) -> list[str]:
        for option in self.sbatch_option or []:
            form = _OPTION.fullmatch(option)
            if form is None or form[1] in _OURS:
                own = "phf sets it itself" if form else "it is not of the form --name or --name=value, without quotes"
                raise UserError(f"--sbatch-option {printable(option)!r}: {own}.")
        return [*(self.sbatch_option or [])]


def _seconds(limit: str) -> int:
    """Return the seconds of a time limit; raise `UserError` if it is none."""
    form = _TIME.fullmatch(limit)
    if form is None:
        raise UserError(f"--time {printable(limit)!r} is no time of Slurm, such as 90 (minutes) or 1-00:00:00.")
    numbers = [int(each) if each else 0 for each in form.groups()]
    if form[1]:
        days, hours, minutes, seconds = numbers[:4]
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    first, second, third = numbers[4:]
    if form[7]:
        return (first * 60 + second) * 60 + third
    return first * 60 + second
