"""A real scrape of a run in progress: its metrics agree with `metrics.jsonl`, and say what the run does."""

import json
import math
import socket
import struct
import urllib.request
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from scorers.errors import StoppedError, UserError
from tests.pipeline.network import free_port
from tests.training.jobs import StopAfter, run_job
from training.config import TrackingConfig
from training.loop.callbacks import Callback, Step
from training.loop.prometheus import METRICS, STATES, PrometheusMetrics
from training.runs.folder import RunFolder


def scrape(port, host="127.0.0.1"):
    """The metrics by name and, where they have one, the label besides `run`; and the values of `run`."""
    page = urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5).read().decode()
    figures, runs = {}, set()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                labels = dict(sample.labels)
                runs.add(labels.pop("run"))
                assert set(labels) == set(METRICS[sample.name].labels)
                figures[(sample.name, *labels.values())] = sample.value
    return figures, runs


class Scraping(Callback):
    """Scrapes after each step, and before the first."""

    def __init__(self, port):
        self.port, self.seen = port, []

    def before_training(self, trainer):
        self.seen.append(scrape(self.port)[0])

    def after_step(self, trainer, step):
        # This callback runs before that of the metrics: what is served is the step before.
        self.seen.append(scrape(self.port)[0])

    def after_training(self, trainer):
        self.seen.append(scrape(self.port)[0])


@pytest.mark.slow
def test_a_scrape_agrees_with_the_log_of_the_run(tmp_path, code_dataset):
    port, output = free_port(), tmp_path / "run"
    scraping = Scraping(port)
    with pytest.raises(StoppedError):
        run_job(
            code_dataset,
            output,
            callbacks=[scraping, StopAfter(8)],
            tracking__metrics_port=port,
            training__save_every=3,
            training__validate_every=4,
        )
    before, *seen = scraping.seen
    assert before["phf_train_state", "preparing"] == 1
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line for line in lines if "loss" in line}
    validated = {line["step"]: line["validation"]["loss"] for line in lines if "validation" in line}
    for step in range(1, 8):
        shown = seen[step]
        assert shown[("phf_train_step",)] == step
        assert shown[("phf_train_target_steps",)] == 12
        for key in ("loss", "tokens", "learning_rate", "tokens_per_second"):
            assert shown[(f"phf_train_{key}",)] == pytest.approx(logged[step][key])
        assert shown[("phf_train_gradient_norm",)] == pytest.approx(logged[step]["grad_norm"])
        assert shown[("phf_train_mfu_ratio",)] == pytest.approx(logged[step]["mfu"])
        assert shown[("phf_train_saved_step",)] == step // 3 * 3
        assert shown.get(("phf_train_validation_loss",)) == validated.get(step // 4 * 4)
        assert shown["phf_train_state", "training"] == 1
        assert sum(shown["phf_train_state", state] for state in STATES) == 1
        assert shown[("phf_train_skipped_steps_total",)] == shown[("phf_train_broken_steps_total",)] == 0
        began = shown[("phf_train_start_timestamp_seconds",)]
        assert began < shown[("phf_train_saved_timestamp_seconds",)]
        assert began < shown[("phf_train_step_timestamp_seconds",)]
    assert {name for name, *_ in seen[7]} == set(METRICS)
    assert (seen[-1]["phf_train_state", "stopping"], seen[-1]["phf_train_state", "training"]) == (1, 0)

    # The next process resumes, and the port is free again. Its counters start at 0, and nothing is unsaved.
    again = Scraping(port)
    run_job(code_dataset, output, callbacks=[again], tracking__metrics_port=port)
    first = again.seen[1]
    assert (first[("phf_train_step",)], first[("phf_train_saved_step",)]) == (8, 8)
    assert first[("phf_train_start_timestamp_seconds",)] > seen[7][("phf_train_start_timestamp_seconds",)]
    with pytest.raises(OSError):
        scrape(port)


def trainer_at(**changes):
    values = {"skipped": 2, "step": 5, "saved": None, "broken": False, "evaluating": False, "stopping": False}
    horizon = SimpleNamespace(steps=9, tokens_per_step=128)
    return SimpleNamespace(**values | changes, asked_to_stop=False, horizon=horizon, world=SimpleNamespace(size=2))


@pytest.fixture
def metrics(tmp_path):
    config = TrackingConfig(metrics_port=free_port())
    with PrometheusMetrics(config, RunFolder(tmp_path / 'odd "name"\n\udce4')) as made:
        made.port = config.metrics_port
        yield made


def test_steps_that_are_lost_are_counted_and_their_loss_is_shown_as_it_is(metrics):
    trainer = trainer_at()
    metrics.before_training(trainer)
    trainer.skipped, trainer.broken = 4, True
    metrics.after_step(trainer, Step(6, last=False, logged=True, values={"loss": math.nan, "grad_norm": None}))
    trainer.evaluating = True
    shown, runs = scrape(metrics.port)
    assert math.isnan(shown[("phf_train_loss",)])
    assert ("phf_train_gradient_norm",) not in shown
    # Two were skipped by the process before.
    assert shown[("phf_train_skipped_steps_total",)] == 2
    assert shown[("phf_train_broken_steps_total",)] == 1
    assert shown["phf_train_state", "evaluating"] == 1
    assert len(runs) == 1


def test_clients_that_are_cut_off_leave_no_trace(metrics, capfd):
    for request in (b"", b"GET /met", b"GET /metrics HTTP/1.1\r\n\r\n", b"\x16\x03\x01" * 40 + b"\r\n"):
        client = socket.create_connection(("127.0.0.1", metrics.port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(request)
        client.close()
    assert scrape(metrics.port)[0]["phf_train_state", "preparing"] == 1
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "no such host", "a" * 70])
def test_an_address_that_cannot_be_bound_is_refused_before_any_work(tmp_path, code_dataset, host):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        changes = {"tracking__metrics_port": port, "tracking__metrics_host": host}
        with pytest.raises(UserError, match=f"Cannot serve metrics at {host}:{port}: .*Choose another --metrics-port"):
            run_job(code_dataset, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()
