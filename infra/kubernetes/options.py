"""The options of jobs on Kubernetes."""

import posixpath
import re
from dataclasses import dataclass
from typing import Annotated

import typer

from infra.submission.job import Job, Kind
from infra.submission.options import Cpus, Gpus, Memory, Nodes
from scorers.errors import UserError
from scorers.printing import printable

SHARED = "/shared"
_PANEL = "On Kubernetes"
# https://kubernetes.io/docs/concepts/overview/working-with-objects/names/
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)
_SIZE = re.compile(r"([1-9]\d*)([MGT])i?", re.ASCII)
_IMAGE = re.compile(r"[A-Za-z0-9][\w.:/@-]*", re.ASCII)


@dataclass(frozen=True)
class KubernetesOptions:
    """The options of `--on kubernetes`."""

    image: Annotated[
        str | None,
        typer.Option(
            "--image", metavar="IMAGE", help="Image with phf, best by digest; required.", rich_help_panel=_PANEL
        ),
    ] = None
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", metavar="NAME", help="Namespace. (default: phf)", rich_help_panel=_PANEL),
    ] = None
    volume: Annotated[
        str | None,
        typer.Option(
            "--volume",
            metavar="CLAIM",
            help=f"Claim of the volume that all pods mount at {SHARED}. (default: none to label, else phf-shared)",
            rich_help_panel=_PANEL,
        ),
    ] = None
    secret: Annotated[
        str | None,
        typer.Option(
            "--secret",
            metavar="NAME",
            help="Secret whose keys become environment variables of the job. (default: to label, phf-object-store if "
            "there is one)",
            rich_help_panel=_PANEL,
        ),
    ] = None
    nodes: Nodes = None
    cpus: Cpus = None
    gpus: Gpus = None
    memory: Memory = None

    @property
    def machines(self) -> int:
        """The number of machines, of a sweep at most."""
        return self.nodes or 1

    @property
    def ranks_per_machine(self) -> int:
        """Ranks of `phf train` on each machine."""
        return self.gpus or 1

    @property
    def in_namespace(self) -> str:
        """The namespace of the job."""
        return self.namespace or "phf"

    @property
    def cores(self) -> int:
        """Cores of each machine."""
        return self.cpus or 8

    @property
    def resources(self) -> dict[str, dict[str, str]]:
        """What a machine's container requests, and its limits."""
        size = _SIZE.fullmatch(self.memory or f"{4 * self.cores}G")
        assert size, "checked before"  # noqa: S101
        memory = f"{size[1]}{size[2]}i"
        gpus = {"nvidia.com/gpu": str(self.gpus)} if self.gpus else {}
        return {"requests": {"cpu": str(self.cores), "memory": memory}, "limits": {"memory": memory, **gpus}}

    def check(self, job: Job) -> None:
        """Check the options by themselves and with a job.

        Raises:
            UserError: an option is not of its form, or the pods would not see the output.
        """
        if self.image is None:
            raise UserError("--on kubernetes needs --image, the image of phf: infra/README.md says how to build it.")
        for name, value, form in (
            ("image", self.image, _IMAGE),
            ("namespace", self.namespace, _NAME),
            ("volume", self.volume, _NAME),
            ("secret", self.secret, _NAME),
        ):
            if value is not None and not form.fullmatch(value):
                raise UserError(f"--{name} {printable(value)!r} is not of the form that Kubernetes takes.")
        if self.memory is not None and not _SIZE.fullmatch(self.memory):
            raise UserError(
                f"--memory {printable(self.memory)!r} is no size of a pod, such as 64G, which is 64 GiB. Kubernetes "
                "needs a limit."
            )
        mounted = self.volume is not None or job.kind is not Kind.LABEL
        if "://" not in job.output and not (mounted and is_shared(job.output)):
            raise UserError(
                f"The pods do not see {printable(job.output)}. Give the path of the output in the volume, below "
                f"{SHARED} (--volume names its claim){', or a URI' if job.kind is Kind.LABEL else ''}."
            )


def is_shared(path: str) -> bool:
    """Whether an absolute path lies in the volume that all pods mount."""
    return f"{posixpath.normpath(path)}/".startswith(f"{SHARED}/")
