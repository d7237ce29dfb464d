"""`phf train --on ray`: Ray Train places the ranks on a cluster and starts them again where one was lost.

The driver trains nothing itself: it passes signals on, shows what ranks print, and leaves with their status, as it does
with ranks of its own machine (`training.distributed.launch`).
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from infra.on_ray.mailbox import STDOUT, Desk, News
from infra.on_ray.rank import RankJob
from infra.on_ray.ray_train import Losses, Outcome, fit
from pipeline.labelling.on_ray.cluster import check_address, ray_cluster
from pipeline.labelling.on_ray.head import HeadWatch, ask_with_timeout
from scorers.amounts import count_of
from scorers.errors import IncompleteError, StoppedError, UserError
from scorers.printing import refuse_secret
from scorers.stopping import asking
from training.distributed.launch import Launch, describe_loss, given_up, restarting

_POLL_S = 0.2
# For the desk to answer; a head that has gone away is noticed by its watch.
_ANSWER_S = 5.0
# After so long it is said that the cluster has no room.
_PATIENCE_S = 60.0


def launch(asked: Launch) -> int:
    """Run the ranks on a Ray cluster until all end well, or end as they mean to.

    Returns:
        0, or the status with which the ranks left (2, 4 or 75).

    Raises:
        UserError: the cluster cannot be joined, has no GPUs for the ranks, or does not share its folders.
        IncompleteError: ranks were lost once more than `max_restarts`, or the cluster was.
        StoppedError: asked to stop before any rank was started.
    """
    if asked.address is not None:
        refuse_secret(asked.address, "address")
        if asked.address.startswith("ray://"):
            raise UserError(
                f"Cannot train through a Ray client ({asked.address}): start the command on a machine of the cluster, "
                "with --address auto."
            )
        check_address(asked.address)
    came: list[int] = []
    with ray_cluster(asked.address, _own_cpus(asked), code=_code()) as resources, asking(came.append):
        gpus = _gpus(asked, resources)
        return _Run(asked, gpus, came).wait()


def _own_cpus(asked: Launch) -> int:
    # Ray counts cores without binding anybody to them; ranks on this machine may be more than its cores.
    return max(len(os.sched_getaffinity(0)), asked.ranks * asked.cpus)


def _code() -> list[Path]:
    """What the nodes of a cluster are sent: all of phf, since ranks are `python -m phf`."""
    import infra
    import phf
    import training

    return [*(Path(package.__path__[0]) for package in (training, infra)), Path(str(phf.__file__))]


def _gpus(asked: Launch, resources: Mapping[str, float]) -> int:
    there = int(resources.get("GPU", 0))
    gpus = min(1, there) if asked.gpus is None else asked.gpus
    # A cluster that is joined may grow.
    if asked.address is None and asked.ranks * gpus > there:
        raise UserError(
            f"There are {there} GPUs here, too few for {count_of(asked.ranks, 'rank')} of one each. "
            "Start fewer ranks, or give --gpus-per-rank 0 to train on the CPU."
        )
    return gpus


class _Run:
    """One run on a cluster that is joined; `came` are the signals so far."""

    def __init__(self, asked: Launch, gpus: int, came: list[int]) -> None:
        import ray

        self._asked, self._gpus, self._came = asked, gpus, came
        context = ray.get_runtime_context()
        # What belongs to the driver stays beside it.
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(context.get_node_id(), soft=True)
        self._beside: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": here}
        self._desk: Any = ray.remote(Desk).options(**self._beside).remote()
        self._head = HeadWatch(context.gcs_address)
        self._passed = 0
        self._restarts = 0

    def wait(self) -> int:
        """Until the ranks have ended; returns their status."""
        self._asked.tell(f"Ray Train starts {self._wanted()}.")
        late = time.monotonic() + _PATIENCE_S
        with tempfile.TemporaryDirectory(prefix="phf-ray-train-", ignore_cleanup_errors=True) as scratch:
            outcome = self._start(scratch)
            while not outcome.done():
                time.sleep(_POLL_S)
                self._head.check()
                self._pass_on()
                news = self._ask()
                if news is None:
                    continue
                self._tell(news)
                if self._came:
                    self._leave_unless_running(news)
                if not news.started and time.monotonic() > late:
                    self._asked.tell(f"Still waiting: the Ray cluster may have no room for {self._wanted()}.")
                    late = float("inf")
        error = outcome.exception()
        brief = f"its task was lost ({type(error).__name__})"
        return self._conclude(outcome.result() if error is None else Outcome(problem=brief))

    def _start(self, scratch: str) -> "Future[Outcome]":
        import ray

        job = RankJob(
            arguments=tuple(self._asked.arguments),
            folder=str(Path.cwd()),
            output=str(self._asked.output),
            environment={"COLUMNS": str(shutil.get_terminal_size().columns)},
            gpu=bool(self._gpus),
            desk=self._desk,
        )
        needs = {"CPU": self._asked.cpus} | ({"GPU": self._gpus} if self._gpus else {})
        task: Any = ray.remote(fit).options(max_retries=0, **self._beside)
        ref = task.remote(job, self._asked.ranks, needs, self._asked.max_restarts, scratch)
        outcome: Future[Outcome] = ref.future()
        return outcome

    def _wanted(self) -> str:
        each = f"{self._asked.cpus} CPU" + (f" and {self._gpus} GPU" if self._gpus else "")
        return f"{count_of(self._asked.ranks, 'rank')} of {each} each"

    def _leave_unless_running(self, news: News) -> None:
        """When asked to stop, not to wait for ranks that Ray Train has no room to start, again or at all."""
        if news.running or len(news.ends) == self._asked.ranks:
            return
        if news.losses:
            raise given_up(_describe(news.losses[-1]), self._restarts, asked_to_stop=True)
        if not news.started:
            raise StoppedError("stopped before any rank was started. The same command goes on.")

    def _pass_on(self) -> None:
        for number in self._came[self._passed :]:
            self._desk.signal.remote(number)
            self._passed += 1

    def _ask(self) -> News | None:
        import ray

        def ask() -> News:
            news: News = ray.get(self._desk.news.remote())
            return news

        return ask_with_timeout(ask, _ANSWER_S)

    def _tell(self, news: News) -> None:
        for stream, piece in news.output:
            target = sys.stdout if stream == STDOUT else sys.stderr
            target.write(piece.decode(errors="replace"))
            target.flush()
        for loss in news.losses[self._restarts : self._asked.max_restarts]:
            self._restarts += 1
            if not self._came:
                self._asked.tell(restarting(_describe(loss), self._restarts, self._asked.max_restarts))

    def _conclude(self, outcome: Outcome) -> int:
        news = self._ask()
        if news is None:
            raise IncompleteError("The Ray cluster does not answer any more. The same command goes on.")
        self._tell(news)
        if news.refusals:
            places = "; ".join(f"on {node}, {problem}" for node, problem in sorted(news.refusals.items()))
            raise UserError(f"Folders must be on a file system that all nodes of the Ray cluster share: {places}.")
        if outcome.problem is not None:
            raise IncompleteError(f"Ray Train cannot go on: {outcome.problem}. The same command goes on.")
        if outcome.lost is not None:
            raise given_up(_describe(outcome.lost), self._asked.max_restarts, asked_to_stop=bool(self._came))
        if len(news.ends) < self._asked.ranks:
            lost = _describe(news.losses[-1]) if news.losses else "Not all ranks were started"
            raise given_up(lost, self._restarts, asked_to_stop=bool(self._came))
        return next((status for status in news.ends.values() if status), 0)


def _describe(losses: Losses) -> str:
    """What was lost first: a signal is a cause, and so is a machine that is gone; an error may be what follows."""
    order = sorted(losses.items(), key=lambda loss: (loss[1] is not None, loss[1] or 0, loss[0]))
    killed = [loss for loss in order if loss[1] is not None and loss[1] < 0]
    rank, status = (killed or order)[0]
    return f"Rank {rank} was lost with its Ray worker or its machine" if status is None else describe_loss(status, rank)
