"""The place `ray`: a running Ray cluster, through its Jobs API."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import typer

from infra.ray.client import connect, find
from infra.ray.log import JobLog
from infra.submission.job import AGAIN, Job, Kind, State, Status, ended
from infra.submission.options import PANEL, Cpus, Gpus
from infra.submission.place import Place
from infra.submission.store import JobFiles
from scorers.errors import UserError
from scorers.printing import printable, without_secrets
from scorers.rehearsal import Rehearsal
from scorers.shell import phf, quoted

_API_VARIABLE, _API = "RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"
# Ray kills a job that was asked to stop after three seconds, unless its supervisor's environment allows more.
_STOP_S = "600"

# Parameters of the commands, and the words that set them. The driver runs on the head, which is a node of the cluster.
_DECIDED: dict[Kind, tuple[dict[str, Any], tuple[str, ...]]] = {
    Kind.LABEL: ({"address": None}, ("--address", "auto")),
    Kind.TRAIN: ({"address": "auto", "on": "ray"}, ("--on", "ray", "--address", "auto")),
}


@dataclass(frozen=True)
class RayOptions:
    """Where the cluster is, and what a sweep reserves there."""

    ray_api: Annotated[
        str | None,
        typer.Option(
            "--ray-api",
            metavar="URL",
            help=f"Jobs API of the cluster, served by its dashboard. (default: {_API_VARIABLE}, else {_API})",
            rich_help_panel=PANEL,
        ),
    ] = None
    cpus: Cpus = None
    gpus: Gpus = None

    def check(self, kind: Kind) -> None:
        """Check the options with a job.

        Raises:
            UserError: the ranks or workers of the job reserve their own cores and GPUs.
        """
        given = [f"--{name}" for name, value in (("cpus", self.cpus), ("gpus", self.gpus)) if value is not None]
        if given and kind is not Kind.SWEEP:
            instead = " --cpus-per-rank and --gpus-per-rank say what a rank reserves." if kind is Kind.TRAIN else ""
            raise UserError(f"{' and '.join(given)}: with --on ray only for a sweep; leave it out.{instead}")


class RayCluster(Place):
    """Submits the driver as a job of the cluster, which runs on its head.

    A sweep is one job too, `phf sweep`, on one machine: Ray starts no job after others, so nobody would compare runs
    that are jobs of their own. Ray chooses a machine with the cores and GPUs that it is to reserve.

    Each attempt has a number, since Ray takes no id twice. What is running is asked of the cluster, so that a job that
    somebody else has submitted is found too.
    """

    name = "ray"
    Options = RayOptions
    decides: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {kind: decided for kind, (decided, _) in _DECIDED.items()}

    def instead(self, kind: Kind) -> str:  # noqa: D102 - see Place, here and below
        return " --ray-api says which cluster."

    def rehearsal(self, job: Job, options: RayOptions) -> Rehearsal:  # noqa: D102
        return Rehearsal(files=False)

    def render(self, job: Job, options: RayOptions, files: JobFiles) -> str:  # noqa: D102
        options.check(job.kind)
        reserved = [f"{value} {name}" for name, value in (("cores", options.cpus), ("GPUs", options.gpus)) if value]
        # A comment of the shell that gets the rest.
        first = f"# Ray reserves {' and '.join(reserved)}.\n" if reserved else ""
        return f"{first}{_entrypoint(job)}\n"

    def check(self, job: Job, options: RayOptions) -> None:  # noqa: D102
        with connect(_address(options)) as client:
            if running := next((each for each in _attempts(client, job) if not each.status.is_terminal()), None):
                raise UserError(
                    f"The cluster already runs {running.submission_id}, which writes to "
                    f"{without_secrets(job.output)}. Stop it there, or wait until it has ended."
                )

    def submit(self, job: Job, options: RayOptions, files: JobFiles) -> dict[str, str]:  # noqa: D102
        address = _address(options)
        with connect(address) as client:
            numbers = [int(each.submission_id.rpartition("-")[2]) for each in _attempts(client, job)]
            submission = f"{job.id}-{max(numbers, default=0) + 1}"
            client.submit_job(
                entrypoint=_entrypoint(job),
                submission_id=submission,
                entrypoint_num_cpus=options.cpus,
                entrypoint_num_gpus=options.gpus,
                runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": _STOP_S}},
            )
        return {"api": address, "submission": submission}

    def status(self, job: Job, files: JobFiles) -> Status:  # noqa: D102
        with connect(job.handle["api"]) as client:
            info = find(client, job.handle["submission"])
        if info is None:
            return Status(State.LOST, f"the cluster does not know it, or was started anew: {AGAIN}")
        states = {"PENDING": State.QUEUED, "RUNNING": State.RUNNING, "STOPPED": State.CANCELLED}
        if state := states.get(info.status.value):
            return Status(state, AGAIN if state is State.CANCELLED else "")
        if info.status.value == "SUCCEEDED":
            return ended(0)
        if info.driver_exit_code is None:
            return Status(State.LOST, f"the cluster lost it: {AGAIN}")
        code = int(info.driver_exit_code)
        return ended(128 - code if code < 0 else code)

    def cancel(self, job: Job, files: JobFiles) -> None:  # noqa: D102
        with connect(job.handle["api"]) as client:
            client.stop_job(job.handle["submission"])

    def open_log(self, job: Job, files: JobFiles) -> JobLog:  # noqa: D102
        return JobLog(job.handle["api"], job.handle["submission"])

    def read_last_lines(self, job: Job, files: JobFiles, most: int) -> list[str]:  # noqa: D102
        lines = self.open_log(job, files).read(ended=True).decode().splitlines()
        return [line[:1_000] for line in lines[-most:]]


def _entrypoint(job: Job) -> str:
    """Return the command for the head's shell. `exec`: Ray also signals a shell, which ends without phf's status."""
    refuse = (
        f"{{ echo {quoted('Error: the head does not see the folder that the job was submitted from.')} >&2; exit 2; }}"
    )
    _, words = _DECIDED.get(job.kind, ({}, ()))
    # Not as a variable of the job: Ray refuses a driver that sets one of those again.
    return f"export PYTHONSAFEPATH=1; cd {quoted(job.folder)} || {refuse}; exec {phf(job.kind, *words, *job.words[1:])}"


def _address(options: RayOptions) -> str:
    address = options.ray_api or os.environ.get(_API_VARIABLE) or _API
    if not address.startswith(("http://", "https://")):
        raise UserError(f"--ray-api {printable(without_secrets(address))} is no URL, such as http://head:8265.")
    if without_secrets(address) != address:
        raise UserError(f"--ray-api {without_secrets(address)} holds a secret: give Ray's token in RAY_AUTH_TOKEN.")
    return address.rstrip("/")


def _attempts(client: Any, job: Job) -> list[Any]:
    """Return the cluster's records of the attempts at a job."""
    return [
        each
        for each in client.list_jobs()
        if (each.submission_id or "").rpartition("-")[0] == job.id and each.submission_id.rpartition("-")[2].isdecimal()
    ]
