"""Run Ray Train, as a task of the cluster, so that the driver can exit without waiting for it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.on_ray.rank import RankJob, RankLostError, run_rank

Losses = Mapping[int, int | None]


@dataclass(frozen=True)
class Outcome:
    """How Ray Train ended.

    Attributes:
        lost: if ranks were lost more often than allowed, the status of each; see `infra.on_ray.mailbox.Messages`.
        problem: if Ray Train failed otherwise, why, in one line.
    """

    lost: Losses | None = None
    problem: str | None = None


def fit(job: RankJob, ranks: int, needs: Mapping[str, int], max_restarts: int, scratch: str) -> Outcome:
    """Have Ray Train place and restart the ranks until all have ended deliberately.

    Args:
        job: what every rank runs.
        ranks: number of ranks.
        needs: the `CPU` and `GPU` that each rank reserves.
        max_restarts: how often to restart all ranks when one is lost.
        scratch: a folder that Ray Train requires. Nothing is stored there: the run keeps its own checkpoints.
    """
    # Ray Train reads these when it is imported, and passes them on.
    os.environ |= {"RAY_TRAIN_V2_ENABLED": "1", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
    # Its actor, another Python process, would ask for the notices of preemption that ranks do not read.
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    from ray.train import BackendConfig, UserCallback, WorkerGroupError
    from ray.train.backend import Backend
    from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    class PlainBackend(Backend):
        """No process group, which the ranks set up themselves; each rank sees all GPUs of the ranks on its node."""

        share_cuda_visible_devices = True

    class PlainBackendConfig(BackendConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return PlainBackend

    class ReportLosses(UserCallback):
        """Runs in Ray Train's controller."""

        def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
            job.mailbox.report_losses.remote(_losses(worker_exceptions))

    trainer = DataParallelTrainer(
        lambda: run_rank(job),
        backend_config=PlainBackendConfig(),
        scaling_config=ScalingConfig(num_workers=ranks, use_gpu="GPU" in needs, resources_per_worker=dict(needs)),
        run_config=RunConfig(  # type: ignore[arg-type] # the signature names the class of Ray Train's first version
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=max_restarts),
            callbacks=[ReportLosses()],
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        return Outcome(lost=_losses(error.worker_failures))
    except Exception as error:  # noqa: BLE001 - the driver reports whatever Ray Train raises
        return Outcome(problem=str(error).strip().splitlines()[-1].rstrip(".") or type(error).__name__)
    return Outcome()


def _losses(failures: Mapping[int, Exception]) -> Losses:
    return {rank: error.status if isinstance(error, RankLostError) else None for rank, error in failures.items()}
