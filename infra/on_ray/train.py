"""`phf train --on ray`: Ray Train places the ranks on a cluster and starts them again where one was lost.

The driver trains nothing itself: it passes signals on, shows what ranks print, and leaves with their status, as it does
with ranks of its own machine (`training.run.launch`).
"""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from infra.on_ray.desk import STDOUT, Desk, News
from infra.on_ray.rank import RankJob, run_rank
from pipeline.labelling.on_ray.cluster import check_address, ray_cluster
from pipeline.labelling.on_ray.head import HeadWatch, answer_of
from scorers.errors import IncompleteError, StoppedError, UserError
from training.run.launch import Launch, describe_loss, given_up, restarting
from training.run.stopping import SIGNALS

if TYPE_CHECKING:
    from ray.train import Result

_POLL_S = 0.2
# For the desk to answer; a head that has gone away is noticed by its watch.
_ANSWER_S = 5.0
# After so long it is said that the cluster has no room.
_PATIENCE_S = 60.0
_ENVIRONMENT = {"RAY_TRAIN_V2_ENABLED": "1", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}


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
        check_address(asked.address)
    os.environ.update(_ENVIRONMENT)
    with _Signals() as signals, ray_cluster(asked.address, _own_cpus(asked), code=_code()) as resources:
        # Ray has claimed SIGTERM.
        signals.install()
        gpus = _gpus(asked, resources)
        return _Run(asked, gpus, signals.came).wait()


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
            f"There are {there} GPUs here, too few for {asked.ranks} ranks of one each. "
            "Start fewer ranks, or give --gpus-per-rank 0 to train on the CPU."
        )
    return gpus


class _Signals:
    """Collects the signals that are for the ranks, instead of what they would do to this process."""

    def __init__(self) -> None:
        self.came: list[int] = []

    def install(self) -> None:
        """Take the signals, also back from a library that has claimed them."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.came.append(number)

    def __enter__(self) -> "_Signals":
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Run:
    """One run on a cluster that is joined; `came` are the signals so far."""

    def __init__(self, asked: Launch, gpus: int, came: list[int]) -> None:
        import ray

        self._asked, self._gpus, self._came = asked, gpus, came
        here = ray.get_runtime_context().get_node_id()
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=True)
        self._desk: Any = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=strategy).remote()
        self._head = HeadWatch(ray.get_runtime_context().gcs_address)
        self._passed = 0
        self._restarts = 0
        self._fitted: Result | None = None
        self._failed: Exception | None = None

    def wait(self) -> int:
        """Until the ranks have ended; returns their status."""
        began, told = time.monotonic(), False
        with _scratch() as scratch:
            fit = threading.Thread(target=self._fit, args=(scratch,), daemon=True, name="ray-train")
            fit.start()
            while fit.is_alive():
                fit.join(_POLL_S)
                self._head.check()
                self._pass_on()
                news = self._ask()
                self._tell(news)
                if news is not None and not news.started:
                    if self._came:
                        raise StoppedError("stopped before any rank was started. The same command goes on.")
                    if not told and time.monotonic() - began > _PATIENCE_S:
                        told = True
                        self._asked.tell(f"Still waiting: the Ray cluster may have no room for {self._wanted()}.")
            return self._conclude()

    def _wanted(self) -> str:
        each = f"{self._asked.cpus} CPU" + (f" and {self._gpus} GPU" if self._gpus else "")
        return f"{self._asked.ranks} ranks of {each} each"

    def _fit(self, scratch: str) -> None:
        try:
            self._fitted = self._trainer(scratch).fit()
        except Exception as error:  # noqa: BLE001 - whatever Ray Train raises is looked at when the ranks have ended
            self._failed = error

    def _trainer(self, scratch: str) -> Any:
        from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        from infra.on_ray.ray_train import Losses, PlainBackendConfig

        job = RankJob(
            arguments=tuple(self._asked.arguments),
            folder=str(Path.cwd()),
            output=str(self._asked.output),
            environment={"COLUMNS": str(shutil.get_terminal_size().columns)},
            gpu=bool(self._gpus),
            desk=self._desk,
        )
        return DataParallelTrainer(
            lambda: run_rank(job),
            # Not torch's: the process group is between the ranks' processes, not between Ray's workers.
            backend_config=PlainBackendConfig(),
            scaling_config=ScalingConfig(
                num_workers=self._asked.ranks,
                use_gpu=bool(self._gpus),
                resources_per_worker={"CPU": self._asked.cpus, **({"GPU": self._gpus} if self._gpus else {})},
            ),
            run_config=RunConfig(  # type: ignore[arg-type] # the signature names the class of Ray Train's first version
                # Nothing is kept there: checkpoints are the run's own.
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=self._asked.max_restarts),
                callbacks=[Losses(self._desk)],
            ),
        )

    def _pass_on(self) -> None:
        for number in self._came[self._passed :]:
            self._desk.signal.remote(number)
            self._passed += 1

    def _ask(self) -> News | None:
        import ray

        def ask() -> News:
            news: News = ray.get(self._desk.news.remote())
            return news

        return answer_of(ask, _ANSWER_S)

    def _tell(self, news: News | None) -> None:
        if news is None:
            return
        for stream, piece in news.output:
            target = sys.stdout if stream == STDOUT else sys.stderr
            target.write(piece.decode(errors="replace"))
            target.flush()
        for loss in news.losses[self._restarts : self._asked.max_restarts]:
            self._restarts += 1
            if not self._came:
                self._asked.tell(restarting(_describe(loss), self._restarts, self._asked.max_restarts))

    def _conclude(self) -> int:
        from ray.train import WorkerGroupError

        from infra.on_ray.ray_train import losses_of

        news = self._ask()
        self._tell(news)
        if news is None:
            raise IncompleteError("The Ray cluster does not answer any more. The same command goes on.")
        if news.refusals:
            places = "; ".join(f"on {node}, {problem}" for node, problem in sorted(news.refusals.items()))
            raise UserError(f"Folders must be on a file system that all nodes of the Ray cluster share: {places}.")
        stopped = bool(self._came)
        if isinstance(self._failed, WorkerGroupError):
            raise given_up(
                _describe(losses_of(self._failed.worker_failures)), self._asked.max_restarts, asked_to_stop=stopped
            )
        if self._failed is not None:
            brief = str(self._failed).strip().splitlines()[-1].rstrip(".") or type(self._failed).__name__
            raise IncompleteError(f"Ray Train could not start {self._wanted()}: {brief}. The same command goes on.")
        if len(news.ends) < self._asked.ranks:
            lost = _describe(news.losses[-1]) if news.losses else "Ranks were not started"
            raise given_up(lost, self._restarts, asked_to_stop=stopped)
        return next((status for status in news.ends.values() if status), 0)


def _describe(losses: Mapping[int, int | None]) -> str:
    """What was lost first: a signal is a cause, and so is a machine that is gone; an error may be what follows."""
    order = sorted(losses.items(), key=lambda loss: (loss[1] is not None, loss[1] or 0, loss[0]))
    killed = [loss for loss in order if loss[1] is not None and loss[1] < 0]
    rank, status = (killed or order)[0]
    return f"Rank {rank} was lost with its Ray worker or its machine" if status is None else describe_loss(status, rank)


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A folder that Ray Train insists on."""
    folder = tempfile.mkdtemp(prefix="phf-ray-train-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
