"""Prometheus metrics of a run, which rank 0 serves from the first minute of preparation until the model is exported.

They hold numbers, the folder of the run, and names from fixed lists; never text of the corpus. Times are timestamps, as
Prometheus wants them: an age is `time() - …`. Each process of a run starts its counters at 0.
"""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from scorers.errors import UserError
from scorers.printing import printable
from training.config import TrackingConfig
from training.loop.callbacks import Callback, Step
from training.runs.folder import RunFolder

if TYPE_CHECKING:
    from training.loop.trainer import Trainer

STATES = ("preparing", "training", "evaluating", "stopping", "exporting")
# Seconds that a client may take to send its request.
_REQUEST_S = 10.0


class Description(NamedTuple):
    """A metric: its type, its help text, and its labels besides `run`."""

    type: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()


METRICS = {
    "phf_train_state": Description("gauge", "1 for what the run is doing, 0 for the rest", ("state",)),
    "phf_train_start_timestamp_seconds": Description("gauge", "When this process of the run started"),
    "phf_train_ranks": Description("gauge", "Ranks"),
    "phf_train_step": Description("gauge", "Steps done"),
    "phf_train_target_steps": Description("gauge", "Steps of the whole run"),
    "phf_train_step_timestamp_seconds": Description("gauge", "When the last step ended, or training began"),
    "phf_train_tokens": Description("gauge", "Tokens trained on"),
    "phf_train_tokens_per_second": Description("gauge", "Tokens per second, all ranks together"),
    "phf_train_mfu_ratio": Description("gauge", "Model FLOPs utilisation, a share of the peak"),
    "phf_train_loss": Description("gauge", "Loss of the last logged step; NaN if it was not finite"),
    "phf_train_validation_loss": Description("gauge", "Loss on held-out text"),
    "phf_train_learning_rate": Description("gauge", "Learning rate"),
    "phf_train_gradient_norm": Description("gauge", "Norm of the gradient before it is clipped"),
    "phf_train_peak_memory_bytes": Description("gauge", "Peak memory of rank 0"),
    "phf_train_seconds": Description("gauge", "Seconds of the last logged step on rank 0, by part", ("part",)),
    "phf_train_skipped_steps_total": Description("counter", "Steps whose update was skipped"),
    "phf_train_broken_steps_total": Description("counter", "Steps whose loss or gradient was not finite"),
    "phf_train_saved_step": Description("gauge", "Step of the newest checkpoint"),
    "phf_train_saved_timestamp_seconds": Description(
        "gauge", "When it was committed or resumed from, or training began"
    ),
}

# The figures of a logged step, by their names in `metrics.jsonl`.
_LOGGED = {
    "loss": "phf_train_loss",
    "learning_rate": "phf_train_learning_rate",
    "grad_norm": "phf_train_gradient_norm",
    "tokens_per_second": "phf_train_tokens_per_second",
    "mfu": "phf_train_mfu_ratio",
    "peak_memory": "phf_train_peak_memory_bytes",
}


class PrometheusMetrics(Callback):
    """Serves the metrics while its context is active, and updates them as a callback of rank 0.

    Args:
        config: with a `metrics_port`.
        folder: the folder of the run.

    Raises:
        UserError: the address cannot be bound.
    """

    def __init__(self, config: TrackingConfig, folder: RunFolder) -> None:
        host, port = config.metrics_host, config.metrics_port
        assert port is not None  # noqa: S101
        self._run = printable(str(folder.path.resolve()))
        self._registry = CollectorRegistry()
        self._metrics: dict[str, Any] = {
            name: (Counter if kind == "counter" else Gauge)(
                name.removesuffix("_total"), text, ("run", *labels), registry=self._registry
            )
            for name, (kind, text, labels) in METRICS.items()
        }
        self._trainer: Trainer | None = None
        self._ended = False
        self._skipped = 0
        for state in STATES:
            self._of("phf_train_state", state=state).set_function(lambda state=state: self._state == state)
        self._set("phf_train_start_timestamp_seconds", time.time())
        self._server = _serve(host, port, self._registry)

    def __enter__(self) -> "PrometheusMetrics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def before_training(self, trainer: "Trainer") -> None:
        """Show where the run begins."""
        self._trainer, self._skipped = trainer, trainer.skipped
        self._set("phf_train_ranks", trainer.world.size)
        self._set("phf_train_target_steps", trainer.horizon.steps)
        for name in ("phf_train_skipped_steps_total", "phf_train_broken_steps_total"):
            self._of(name)
        self._show_step(trainer)
        self._show_saved(trainer)

    def after_step(self, trainer: "Trainer", step: Step) -> None:
        """Show the step, and the figures of a logged one."""
        self._show_step(trainer)
        if trainer.skipped > self._skipped:
            self._of("phf_train_skipped_steps_total").inc(trainer.skipped - self._skipped)
            self._skipped = trainer.skipped
        if trainer.broken:
            self._of("phf_train_broken_steps_total").inc()
        for name, metric in _LOGGED.items():
            if step.values.get(name) is not None:
                self._set(metric, step.values[name])
        for part, seconds in step.values.get("seconds", {}).items():
            self._set("phf_train_seconds", seconds, part=part)

    def after_save(self, trainer: "Trainer") -> None:
        """Show the checkpoint."""
        self._show_saved(trainer)

    def after_validation(self, trainer: "Trainer", loss: float) -> None:
        """Show the validation loss."""
        self._set("phf_train_validation_loss", loss)

    def after_training(self, trainer: "Trainer") -> None:
        """Show that no more steps follow."""
        self._ended = True

    @property
    def _state(self) -> str:
        # Read at each scrape, by another thread: so a signal to stop shows at once.
        trainer = self._trainer
        if trainer is None:
            return "preparing"
        if trainer.stopping or trainer.asked_to_stop:
            return "stopping"
        if self._ended:
            return "exporting"
        return "evaluating" if trainer.evaluating else "training"

    def _show_step(self, trainer: "Trainer") -> None:
        self._set("phf_train_step", trainer.step)
        self._set("phf_train_tokens", trainer.step * trainer.horizon.tokens_per_step)
        self._set("phf_train_step_timestamp_seconds", time.time())

    def _show_saved(self, trainer: "Trainer") -> None:
        self._set("phf_train_saved_step", trainer.saved or 0)
        self._set("phf_train_saved_timestamp_seconds", time.time())

    def _set(self, name: str, value: float, **labels: str) -> None:
        self._of(name, **labels).set(value)

    def _of(self, name: str, **labels: str) -> Any:
        return self._metrics[name].labels(run=self._run, **labels)


def _serve(host: str, port: int, registry: CollectorRegistry) -> WSGIServer:
    try:
        server, _ = start_http_server(port, host, registry)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not an address"
        raise UserError(
            f"Cannot serve metrics at {printable(host)}:{port}: {reason}. Choose another --metrics-port, or another "
            "tracking.metrics_host."
        ) from None
    # A client that hangs must not keep a thread, and one that is cut off must not print a traceback.
    handler: Any = server.RequestHandlerClass
    server.RequestHandlerClass = type("Handler", (handler,), {"timeout": _REQUEST_S})
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    return server
