"""The MLflow tracker, for a tracking server or a folder."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from training.config import MlflowConfig
from training.trackers.sink import Opening

_LONGEST_VALUE = 500  # of a parameter, in any version
_PARAMETERS_AT_ONCE = 100


class Mlflow:
    """An MLflow run, through a client without global state.

    MLflow keeps every value that it was ever sent for a step, so an MLflow run cannot go back: a new one is started
    with the current lines, and the earlier one is marked as killed and superseded.
    """

    def __init__(self, config: MlflowConfig, opening: Opening) -> None:
        # By default MLflow retries for many minutes to reach a server.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        uri = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            uri = str(Path(opening.folder).resolve() / "mlflow")
        if "://" not in uri or uri.startswith("file:"):
            # MLflow 3 requires consent for a local folder.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric: Any = Metric
        self._client: Any = MlflowClient(tracking_uri=uri)
        self.continues = opening.run_id is not None and not opening.goes_back
        if opening.run_id is not None and self.continues:
            self.run_id = opening.run_id
            self._client.update_run(self.run_id, status="RUNNING")
            return
        known = self._client.get_experiment_by_name(config.experiment)
        experiment = known.experiment_id if known is not None else self._client.create_experiment(config.experiment)
        run = self._client.create_run(experiment, run_name=config.name or opening.name)
        self.run_id = str(run.info.run_id)
        if opening.run_id is not None:
            # The earlier run may be gone, and is no longer needed.
            with suppress(Exception):
                self._client.set_tag(opening.run_id, "phf.superseded_by", self.run_id)
                self._client.set_terminated(opening.run_id, "KILLED")
        parameters = [Param(name, value[:_LONGEST_VALUE]) for name, value in _flat(opening.config, "")]
        for start in range(0, len(parameters), _PARAMETERS_AT_ONCE):
            self._client.log_batch(self.run_id, params=parameters[start : start + _PARAMETERS_AT_ONCE])

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the numbers of a step in one request."""
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def close(self) -> None:
        """Mark the run as finished; it can still be continued."""
        self._client.set_terminated(self.run_id)


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield prefix + key, str(value)
