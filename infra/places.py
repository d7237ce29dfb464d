"""The places where jobs can be submitted. A new place is a folder here and a line below."""

from infra.kubernetes.place import Kubernetes
from infra.local.place import Local
from infra.ray.place import RayCluster
from infra.slurm.place import Slurm
from infra.submission.place import Place

PLACES: dict[str, Place] = {place.name: place for place in (Local(), RayCluster(), Slurm(), Kubernetes())}
