"""The place `slurm`: scripts for sbatch, requeued when they stop cleanly or lose a node."""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from infra.slurm import client
from infra.slurm.options import SlurmOptions
from infra.slurm.states import read_status
from infra.submission.job import Job, Kind, Status
from infra.submission.place import Place
from infra.submission.store import JobFiles
from scorers.errors import UserError
from scorers.printing import printable, without_secrets
from scorers.rehearsal import Rehearsal
from scorers.shell import quoted

_RANKS = {"ranks": 1, "max_restarts": 0, "address": None, "cpus_per_rank": None, "gpus_per_rank": None}


class Slurm(Place):
    """Submits a script, whose job writes its events beside the record; the state folder must be on shared disks."""

    name = "slurm"
    Options = SlurmOptions
    decides: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {Kind.LABEL: {"address": None}, Kind.TRAIN: _RANKS}

    def instead(self, kind: Kind) -> str:  # noqa: D102 - see Place, here and below
        return " --nodes and --tasks say how many ranks there are." if kind is Kind.TRAIN else ""

    def rehearsal(self, job: Job, options: SlurmOptions) -> Rehearsal:  # noqa: D102
        return Rehearsal(ranks=(options.nodes or 1) * options.ranks_per_node(job.kind))

    def render(self, job: Job, options: SlurmOptions, files: JobFiles) -> str:  # noqa: D102
        return "\n".join(_scripts(job, options, files))

    def check(self, job: Job, options: SlurmOptions) -> None:  # noqa: D102
        there = client.machines()
        names = {each.partition for each in there}
        chosen = set(options.partition.split(",")) if options.partition is not None else None
        if chosen is not None and (missing := chosen - names):
            raise UserError(
                f"Slurm has no partition {printable(min(missing))}. There are: {printable(', '.join(sorted(names)))}."
            )
        own = [each for each in there if (each.default if chosen is None else each.partition in chosen)]
        _check_room(own, options.nodes or 1, (options.cpus or 8) * options.ranks_per_node(job.kind))

    def submit(self, job: Job, options: SlurmOptions, files: JobFiles) -> dict[str, str]:  # noqa: D102
        scripts = _scripts(job, options, files)
        # Another user's, or one of another state folder. This user's own is known by its record.
        for there in client.find(job.id)[:1]:
            raise UserError(
                f"Slurm already has job {printable(there.number)} of {printable(there.user)}, which writes to "
                f"{without_secrets(job.output)}. Cancel it there (scancel), or wait until it has ended."
            )
        files.write_private(files.script, "\n".join(scripts))
        # Slurm would create it with the permissions that the job gives its own files.
        files.add_to_log(b"")
        handle = {"job": client.submit(scripts[0])}
        if len(scripts) > 1:
            try:
                handle["comparison"] = client.submit(scripts[1], [f"--dependency=afterany:{handle['job']}"])
            except UserError:
                # Nobody would know of the array.
                client.run("scancel", handle["job"])
                raise
        return handle

    def status(self, job: Job, files: JobFiles) -> Status:  # noqa: D102
        return read_status(job, files)

    def cancel(self, job: Job, files: JobFiles) -> None:  # noqa: D102
        numbers = [*job.handle.values()]
        asked = sum(event.what == "cancelled" for event in files.read_events()) > 1
        if asked:
            # It did not stop: end it, after Slurm's KillWait.
            client.run("scancel", *numbers)
            return
        client.run("scancel", "--state=PENDING", *numbers)
        # What runs saves its work and ends with 75: ranks get the signal, and scripts that run one command pass it on.
        ranks, scripts = (numbers[:0], numbers) if job.kind is Kind.LABEL else (numbers[:1], numbers[1:])
        # It fails where nothing runs.
        with suppress(UserError):
            if ranks:
                client.run("scancel", "--signal=USR1", *ranks)
        with suppress(UserError):
            if scripts:
                client.run("scancel", "--batch", "--signal=TERM", *scripts)


def _check_room(machines: list[client.Machines], nodes: int, cores: int) -> None:
    """Refuse what no partition has; Slurm would keep such a job queued for ever."""
    fitting: dict[str, int] = {}
    for each in machines:
        fitting[each.partition] = fitting.get(each.partition, 0) + each.count * (each.cores >= cores)
    if fitting and max(fitting.values()) < nodes:
        largest = max(each.cores for each in machines)
        raise UserError(
            f"The job asks for {nodes} machines with {cores} cores each, and {printable(', '.join(sorted(fitting)))} "
            f"has {max(fitting.values())} of them; its largest machines have {largest} cores. Give fewer --nodes, "
            "--tasks or --cpus, or another --partition."
        )


def _scripts(job: Job, options: SlurmOptions, files: JobFiles) -> list[str]:
    """Return the script, for a sweep also that of the job after it."""
    resources = [*options.lines(job), *_log(job, files)]
    script = job.kind is Kind.LABEL
    first = [f"--job-name={job.id}", *resources, options.signal(job.kind, script=script)]
    if job.kind is not Kind.SWEEP:
        return [_fill(f"{job.kind}.sbatch.j2", job, files, first)]
    last = [f"--job-name={job.id}", *resources, options.signal(job.kind, script=True)]
    array = f"--array=0-{len(job.tasks) - 1}"
    return [_fill("sweep.sbatch.j2", job, files, [*first, array]), _fill("compare.sbatch.j2", job, files, last)]


def _log(job: Job, files: JobFiles) -> list[str]:
    for path in (job.folder, str(files.log)):
        if not path.isprintable() or set(path) & set('\\"'):
            raise UserError(f"Slurm takes no folder with such characters: {printable(path)}. Rename it.")
    pattern = str(files.log).replace("%", "%%")
    return [f'--output="{pattern}"']


def _fill(template: str, job: Job, files: JobFiles, options: list[str]) -> str:
    text: str = (
        _environment()
        .get_template(template)
        .render(
            job=job,
            options=options,
            arguments=" ".join(quoted(word) for word in job.words[1:]),
            environment=sys.prefix,
            events=files.events,
            shared=None if "://" in job.output else _existing(Path(job.output).parent),
        )
    )
    return text


def _existing(folder: Path) -> Path:
    while not os.access(folder, os.F_OK):
        folder = folder.parent
    return folder


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(  # noqa: S701 - scripts for bash, whose words `quoted` quotes
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["quoted"] = quoted
    return environment
