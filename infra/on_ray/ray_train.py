"""What Ray Train is told beside its settings. Imported only once Ray's environment is set."""

from collections.abc import Mapping
from typing import Any

from ray.train import BackendConfig, UserCallback
from ray.train.backend import Backend

from infra.on_ray.rank import RankLostError


class PlainBackend(Backend):
    """No process group between Ray's workers; each sees all GPUs that ranks have on its node, as under torchrun."""

    share_cuda_visible_devices = True


class PlainBackendConfig(BackendConfig):
    """Of `PlainBackend`."""

    @property
    def backend_cls(self) -> type[Backend]:
        """Its class."""
        return PlainBackend


class Losses(UserCallback):
    """Tells the desk of ranks that Ray Train has missed; called in its controller."""

    def __init__(self, desk: Any) -> None:
        self._desk = desk

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """One or more workers have raised, or are gone."""
        self._desk.lose.remote(losses_of(worker_exceptions))


def losses_of(failures: Mapping[int, Exception]) -> dict[int, int | None]:
    """The status of each rank that was lost, None where it went with its worker."""
    return {rank: error.status if isinstance(error, RankLostError) else None for rank, error in failures.items()}
