"""A real Prometheus scrapes a labelling job and a training run, has every metric, and alerts when they stall."""

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scorers.errors import StoppedError
from tests.infra.test_alerts import RULES
from tests.infra.test_monitoring import HISTOGRAM, NODES, named, shown, watched
from tests.pipeline import probe
from tests.pipeline.label_job import Labelling
from tests.pipeline.network import free_port
from tests.training.jobs import StopAfter, make_code_dataset, run_job
from training.loop.callbacks import Callback

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus: apt-get install prometheus"),
]

LABEL_ALERTS = {"PhfLabelStalled", "PhfLabelQuarantine", "PhfLabelQuarantineMany", "PhfLabelInputsLost"}
DEADLINE_S = 400.0


class Prometheus:
    """A server with the project's configuration, at other ports, and with minutes shortened to seconds."""

    def __init__(self, folder: Path, label: int, train: int) -> None:
        folder.mkdir()
        config = yaml.safe_load(RULES.with_name("prometheus.yaml").read_text())
        config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
        for job, port in {"phf": label, "phf-train": train}.items():
            (scraped,) = [each for each in config["scrape_configs"] if each["job_name"] == job]
            scraped["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        rules = re.sub(r"\b(\d+)m\b", r"\1s", RULES.read_text()).replace("30 * 60\n", "10\n")
        (folder / "rules.yaml").write_text(rules)
        self._address = f"127.0.0.1:{free_port()}"
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen(
            [
                *("prometheus", f"--config.file={folder / 'prometheus.yaml'}"),
                *(f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={self._address}"),
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def query(self, expression: str) -> list[dict[str, str]]:
        """The labels of the series that an expression has now; none while the server starts."""
        assert self._process.poll() is None, Path(self._log.name).read_text()
        url = f"http://{self._address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        try:
            answer = json.load(urllib.request.urlopen(url, timeout=10))
        except OSError:
            return []
        return [each["metric"] for each in answer["data"]["result"]]

    def metrics(self) -> dict[str, set[str]]:
        """The labels of each metric that is scraped."""
        found: dict[str, set[str]] = {}
        for labels in self.query('{__name__=~"ray_.*|phf_.*"}'):
            found.setdefault(labels.pop("__name__"), set()).update(labels)
        return found

    def firing(self) -> set[str]:
        return {each["alertname"] for each in self.query('ALERTS{alertstate="firing"}')}

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


def missing(found: dict[str, set[str]]) -> list[str]:
    """What the dashboard or the alerts name and Prometheus does not have."""
    lacking = []
    for query in shown() + watched():
        for name, labels in named(query):
            have = [found[each] for each in (name, *(name + end for end in HISTOGRAM)) if each in found]
            if not have or not (labels | ({"ip"} if name in NODES else set())) <= have[0]:
                lacking.append(name)
    return lacking


class Watching(Callback):
    """Holds the run after a step until a condition holds; describes the state when time is up."""

    def __init__(self, step: int, condition: Any) -> None:
        self._step, self._condition = step, condition

    def after_step(self, trainer: Any, step: Any) -> None:
        if step.number == self._step:
            end = time.monotonic() + DEADLINE_S
            while problem := self._condition():
                assert time.monotonic() < end, problem
                time.sleep(1)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Labelling, int]]:
    """A labelling job that stalls after some units: a record is quarantined, an input is cut, a worker has died."""
    made = Labelling(tmp_path / "job", env={"RAY_metrics_report_interval_ms": "1000"})
    texts = [f"One of {number}. Two. Three. {'x' * 300}" for number in range(40)]
    texts[15] += probe.KILL_ONCE
    made.write(texts)
    with (made.corpus / "corpus.jsonl").open("a") as file:
        file.write("no JSON\n")
    (made.corpus / "a.jsonl").write_text('{"text": 5}\n')
    whole = subprocess.run(["gzip", "-c", made.corpus / "corpus.jsonl"], capture_output=True, check=True).stdout
    (made.corpus / "b.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    made.hold(31)
    port = free_port()
    process = made.start("--unit-size", "1000", "--metrics-port", str(port), "--max-quarantined", "9")
    yield made, port
    process.kill()
    process.communicate()


def test_prometheus_has_every_metric_and_alerts_on_what_stalls(tmp_path: Path, held: tuple[Labelling, int]) -> None:
    made, label = held
    train = free_port()
    prometheus = Prometheus(tmp_path / "prometheus", label, train)
    expected = {*LABEL_ALERTS, "PhfTrainStalled"}

    def problem() -> str:
        lacking, firing = missing(prometheus.metrics()), prometheus.firing()
        return f"lacks {lacking}, {expected - firing} do not fire" if lacking or expected - firing else ""

    try:
        with pytest.raises(StoppedError):
            run_job(
                make_code_dataset(tmp_path / "code"),
                tmp_path / "run",
                callbacks=[Watching(6, problem), StopAfter(6)],
                tracking__metrics_port=train,
                training__validate_every=4,
            )
        others = prometheus.firing() - expected
        assert not others - {"PhfLabelMemory", "PhfLabelSlow", "PhfTrainSlow", "PhfTrainDiverging"}, others
        ((dataset,), (run,)) = (
            {each[label] for each in prometheus.query(query)}
            for label, query in {
                "dataset": "last_over_time(ray_phf_units[1h])",
                "run": "last_over_time(phf_train_step[1h])",
            }.items()
        )
        assert (dataset, run) == (str(made.output), str(tmp_path / "run"))
    finally:
        prometheus.close()
