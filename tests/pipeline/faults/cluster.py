"""A real Ray cluster of several nodes on this machine; each has its own raylet, which tests can kill."""

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from typing import Any

from tests.pipeline.faults.job import command_of
from tests.pipeline.label_job import alive, descendants

# A raylet ends itself when its agents take over 15 s to start, as they may on a busy machine.
_STARTS = 3

SECRET_FREE = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}


class Cluster:
    """A head without CPUs, on which only drivers run, and nodes of one CPU each.

    `env` is the environment of the nodes, which their workers inherit.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        self._env = dict(env) | SECRET_FREE
        self._nodes: list[Any] = []
        self._killed: list[Any] = []
        with _environment(self._env):
            self._ray = RayCluster(
                initialize_head=True,
                head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000, "include_dashboard": False},
            )

    @property
    def address(self) -> str:
        """The address for drivers."""
        return str(self._ray.address)

    @property
    def nodes(self) -> list[Any]:
        """The nodes that were added and neither removed nor killed."""
        return list(self._nodes)

    def add(self, env: Mapping[str, str] | None = None) -> Any:
        """Add a node, with more environment variables for its workers; returns it."""
        with _environment(self._env | dict(env or {})):
            for attempt in range(_STARTS):
                before = set(self._ray.worker_nodes)
                try:
                    node = self._ray.add_node(num_cpus=1, object_store_memory=80_000_000)
                    break
                except Exception:
                    if attempt == _STARTS - 1:
                        raise
                    for dead in set(self._ray.worker_nodes) - before:
                        self._ray.remove_node(dead, allow_graceful=False)
        self._nodes.append(node)
        return node

    def remove(self, node: Any) -> None:
        """Remove a node in an orderly way."""
        self._nodes.remove(node)
        self._ray.remove_node(node, allow_graceful=True)

    def kill_raylet(self, node: Any) -> None:
        """Kill a node: SIGKILL to its raylet, with which its workers die."""
        self._nodes.remove(node)
        self._killed.append(node)
        os.kill(_pid(node, "raylet"), signal.SIGKILL)

    def kill_head(self) -> None:
        """Kill the head: its GCS and its raylet."""
        head = self._ray.head_node
        for name in ("gcs_server", "raylet"):
            os.kill(_pid(head, name), signal.SIGKILL)

    def workers(self, node: Any = None) -> list[int]:
        """Process ids of phf's actors on one node or on all, the oldest first."""
        nodes = self._nodes if node is None else [node]
        below = {pid for each in nodes for pid in descendants(_pid(each, "raylet"))}
        return sorted(pid for pid in alive(below) if "LabelActor" in command_of(pid))

    def close(self) -> None:
        """Shut down all nodes, dead or alive."""
        pids = {
            info.process.pid
            for node in [self._ray.head_node, *self._nodes, *self._killed]
            if node is not None
            for infos in node.all_processes.values()
            for info in infos
        }
        pids |= {each for pid in pids for each in descendants(pid)}
        with contextlib.suppress(Exception):
            self._ray.shutdown()  # type: ignore[no-untyped-call]
        for pid in alive(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def cluster(env: Mapping[str, str]) -> Iterator[Cluster]:
    """A cluster, shut down at the end of the context."""
    made = Cluster(env)
    try:
        yield made
    finally:
        made.close()


def _pid(node: Any, name: str) -> int:
    return int(node.all_processes[name][0].process.pid)


@contextlib.contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    """Set the environment of this process, which Ray's processes inherit."""
    before = dict(os.environ)
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
