"""The work of a process that labels units, with or without Ray: failures are values, and nothing is printed."""

import gc
import os
import sys
from dataclasses import dataclass

from pipeline.corpus.plan import Unit
from pipeline.labelling.resolve import ResolvedJob
from pipeline.labelling.workers.isolation import describe_error, label_isolated
from pipeline.labelling.workers.memory import resident_memory, watch_memory
from pipeline.labelling.workers.secrecy import discard_output, forbid_core_dumps
from pipeline.labelling.workers.worker import PartResult, UnitLabeller
from scorers.amounts import format_size
from scorers.errors import UserError


@dataclass(frozen=True)
class Started:
    """The process has built its scorers: the name of its machine, its Ray node, and fingerprints by column."""

    node: str
    fingerprints: dict[str, str]
    node_id: str = ""


@dataclass(frozen=True)
class NotStarted:
    """The scorers cannot be built."""

    node: str
    error: str


@dataclass(frozen=True)
class Failed:
    """A unit could not be labelled."""

    error: str


class LabellingProcess:
    """Labels units of one job with the scorers of one group. No exception carries text out of the process."""

    def __init__(self, job: ResolvedJob, group: str) -> None:
        discard_output()
        forbid_core_dumps()
        self._job = job
        self._group = group
        self._labeller: UnitLabeller | None = None

    def start(self) -> Started | NotStarted:
        """Build the scorers, which can take a long time."""
        forbid_core_dumps()
        node = os.uname().nodename
        try:
            self._labeller = UnitLabeller(self._job, self._group)
            self._watch_memory()
        except Exception as error:  # noqa: BLE001 - the driver reports it to the user
            return NotStarted(node, describe_error(error))
        return Started(node, self._labeller.fingerprints)

    def label(self, unit: Unit, staged: str, isolated: bool) -> PartResult | Failed:
        """Stage the group's part of a unit."""
        try:
            if isolated:
                self._free_memory()
                return label_isolated(self._job, self._group, unit, staged)
            if self._labeller is None:
                self._labeller = UnitLabeller(self._job, self._group)
            return self._labeller.label(unit, staged)
        except Exception as error:  # noqa: BLE001 - the scheduler counts it
            return Failed(describe_error(error))
        except BaseException:  # noqa: BLE001 - `sys.exit` in a library: Ray would log its message on every node
            os._exit(1)

    def _free_memory(self) -> None:
        """Free the scorers' memory, also on the GPU, for a child process that builds its own scorers."""
        self._labeller = None
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _watch_memory(self) -> None:
        limit = self._job.config.execution.memory_limit
        if limit is None:
            return
        holds = resident_memory(os.getpid())
        if holds > limit:
            raise UserError(
                f"a worker of the group {self._group} uses {format_size(holds)} before its first unit, more than "
                f"execution.memory_limit ({format_size(limit)}) allows"
            )
        # Exit from the watching thread: the main thread may be inside a scorer, where no exception reaches it.
        watch_memory(limit, lambda: os._exit(1))
