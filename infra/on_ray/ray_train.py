"""What asks Ray Train for a run. A task of the cluster, so that the driver can leave without it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.on_ray.rank import RankJob, RankLostError, run_rank

Losses = Mapping[int, int | None]


@dataclass(frozen=True)
class Outcome:
    """How it ended.

    Attributes:
        lost: where ranks were lost once more than allowed, the status of each; see `infra.on_ray.mailbox.News`.
        problem: where Ray Train failed otherwise, in a line.
    """

    lost: Losses | None = None
    problem: str | None = None


def fit(job: RankJob, ranks: int, needs: Mapping[str, int], max_restarts: int, scratch: str) -> Outcome:
    """Have Ray Train place the ranks and start them again, until all have left of their own accord.

    Args:
        job: of every rank.
        ranks: workers.
        needs: `CPU` and `GPU` that each reserves.
        max_restarts: how often all start again when one was lost.
        scratch: a folder that Ray Train insists on. Nothing is kept there: checkpoints are the run's own.
    """
    # Ray Train reads them when it is imported, and passes them on.
    os.environ |= {"RAY_TRAIN_V2_ENABLED": "1", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
    from ray.train import BackendConfig, UserCallback, WorkerGroupError
    from ray.train.backend import Backend
    from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    class PlainBackend(Backend):
        """No process group, which is between the ranks; each sees all GPUs that they have on its node."""

        share_cuda_visible_devices = True

    class PlainBackendConfig(BackendConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return PlainBackend

    class TellLosses(UserCallback):
        """Called in Ray Train's controller."""

        def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
            job.desk.lose.remote(_losses(worker_exceptions))

    trainer = DataParallelTrainer(
        lambda: run_rank(job),
        backend_config=PlainBackendConfig(),
        scaling_config=ScalingConfig(num_workers=ranks, use_gpu="GPU" in needs, resources_per_worker=dict(needs)),
        run_config=RunConfig(  # type: ignore[arg-type] # the signature names the class of Ray Train's first version
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=max_restarts),
            callbacks=[TellLosses()],
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        return Outcome(lost=_losses(error.worker_failures))
    except Exception as error:  # noqa: BLE001 - whatever Ray Train raises, the driver says it
        return Outcome(problem=str(error).strip().splitlines()[-1].rstrip(".") or type(error).__name__)
    return Outcome()


def _losses(failures: Mapping[int, Exception]) -> Losses:
    return {rank: error.status if isinstance(error, RankLostError) else None for rank, error in failures.items()}
