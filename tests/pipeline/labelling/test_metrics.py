"""Prometheus metrics and `phf status` of a running job agree with its log and ledger."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.labelling.monitoring.metrics import METRICS
from tests.pipeline import probe
from tests.pipeline.label_job import Labelling, wait_for
from tests.pipeline.network import free_port

RAYS_OWN = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId", "le"}

Figures = dict[str, dict[tuple[tuple[str, str], ...], float]]


def scrape(port: int) -> Figures:
    """The metrics by name and labels, without `ray_` and Ray's own labels; empty if the agent does not answer."""
    figures: Figures = {}
    try:
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    except (urllib.error.URLError, ConnectionError):
        return figures
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name.startswith("ray_phf_"):
                labels = {k: v for k, v in sample.labels.items() if k not in RAYS_OWN and not k.startswith("otel_")}
                figures.setdefault(sample.name.removeprefix("ray_"), {})[tuple(sorted(labels.items()))] = sample.value
    return figures


def by_label(figures: Figures, name: str, label: str = "") -> dict[str, float]:
    return {dict(labels).get(label, ""): value for labels, value in figures.get(name, {}).items()}


@pytest.mark.slow
def test_metrics_of_a_running_job_match_its_log_and_ledger(tmp_path: Path) -> None:
    made = Labelling(tmp_path, env={"RAY_metrics_report_interval_ms": "1000"})
    texts = [f"One of {number}. Two. Three. {'x' * 300}" for number in range(40)]
    # Far from the first unit, whose records are quarantined: the kill may also lose a part that was just staged.
    texts[15] += probe.KILL_ONCE
    made.write(texts)
    with (made.corpus / "corpus.jsonl").open("a") as file:
        file.write("no JSON\n")
    with (made.corpus / "a.jsonl").open("w") as file:
        file.write('{"text": 5}\nno JSON\n')
    made.hold(31)
    port = free_port()
    log = tmp_path / "run.log"
    process = made.start(
        "--unit-size", "1000", "--log", str(log), "--metrics-port", str(port), "--max-quarantined", "3"
    )

    def events(name: str) -> list[dict[str, object]]:
        found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [event for event in found if event["event"] == name]

    def settled() -> bool:
        assert process.poll() is None, process.communicate()
        committed = len(events("unit-committed"))
        figures = scrape(port)
        return (
            committed > 5
            # One worker may still be labelling the first unit when the other is already held.
            and any(event["quarantined"] for event in events("unit-committed"))
            and by_label(figures, "phf_units_committed_total") == {"": committed}
            and by_label(figures, "phf_units", "state").get("committed") == committed
            and by_label(figures, "phf_workers", "state").get("working") == 2
        )

    def settled_for_good() -> bool:
        # Finally both workers are held; until then one more unit may be committed.
        return settled() and (time.sleep(3) or settled())

    wait_for(settled_for_good, 120)
    figures = scrape(port)
    committed = events("unit-committed")
    (started,) = events("plan")
    units = int(str(started["units"]))
    for name, key in {"records": "records", "sentences": "sentences", "bytes_text": "bytes_text"}.items():
        assert by_label(figures, f"phf_{name}_total") == {"": sum(event[key] for event in committed)}  # type: ignore[misc]
    reasons: Counter[str] = Counter()
    for event in committed:
        reasons.update(event["quarantined"])  # type: ignore[arg-type]
    assert reasons
    assert by_label(figures, "phf_quarantined_total", "reason") == reasons
    staged = events("unit-staged")
    assert by_label(figures, "phf_unit_seconds_count", "group") == {"cpu": len(staged)}
    assert by_label(figures, "phf_attempts_failed_total", "group") == {"cpu": 1}
    assert by_label(figures, "phf_workers_lost_total", "group") == {"cpu": len(events("worker-lost"))} == {"cpu": 1}
    assert by_label(figures, "phf_workers", "state") == {"starting": 0, "idle": 0, "working": 2}
    states = by_label(figures, "phf_units", "state")
    assert sum(states.values()) == units
    assert states["given-up"] == 0
    assert by_label(figures, "phf_scorer_seconds_total", "column").keys() == {"probe"}
    assert by_label(figures, "phf_step_seconds_total", "step").keys() == {"read", "split", "write"}
    assert by_label(figures, "phf_remaining_seconds")[""] > 0

    # Every metric is served with its name and labels.
    for name, described in METRICS.items():
        samples = figures.get(name) or figures[f"{name}_sum"]
        for labels in samples:
            assert {key for key, _ in labels} == {*described.labels, "dataset", "run"}
            assert dict(labels)["run"] == started["run"]
            assert dict(labels)["dataset"] == str(made.output)

    time.sleep(6)  # until the status file is written again
    status = subprocess.run(
        [sys.executable, "-m", "phf", "status", str(made.output), "--json"],
        capture_output=True,
        env=made.env,
        check=True,
    )
    shown = json.loads(status.stdout)
    assert (shown["state"], shown["units"], shown["committed"]) == ("running", units, len(committed))
    assert (shown["records"], shown["quarantined"]) == (sum(event["records"] for event in committed), reasons)  # type: ignore[misc]
    assert shown["run"]["run"] == started["run"]
    assert shown["run"]["workers"] == {"cpu": {"starting": 0, "idle": 0, "working": 2}}
    assert shown["run"]["backlog"] == {"cpu": int(by_label(figures, "phf_backlog", "group")["cpu"])}
    assert shown["run"]["failures"][0]["unit"] == events("worker-lost")[0]["unit"]
    assert shown["run"]["remaining_s"] > 0

    watching = subprocess.Popen(
        [sys.executable, "-m", "phf", "status", str(made.output), "--watch"],
        stdout=subprocess.PIPE,
        text=True,
        env=made.env,
    )
    made.release()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    live, _ = watching.communicate(timeout=60)
    assert "labelled and sealed" in " ".join(live.split())

    manifest = json.loads((made.output / "manifest.json").read_text())
    committed = events("unit-committed")
    assert len(committed) == units
    assert sum(event["records"] for event in committed) == manifest["ledger"]["records"] == 43  # type: ignore[misc]
    assert sum(event["sentences"] for event in committed) == manifest["sentences"]  # type: ignore[misc]
    assert events("sealed")[0]["quarantined"] == manifest["ledger"]["quarantined"]
    assert {event["epoch"] for event in committed} == {1}
    assert [event["state"] for event in events("run-ended")] == ["done"]


def test_a_port_that_is_in_use_or_for_a_cluster_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    made = Labelling(tmp_path)
    made.write(["One."])
    with socket.create_server(("", 0)) as server:
        port = str(server.getsockname()[1])
        taken = made.run("--metrics-port", port)
    assert taken.returncode == 2
    assert f"Cannot serve metrics at port {port}: Address already in use" in taken.stderr
    joined = made.run("--metrics-port", port, "--address", "auto")
    assert joined.returncode == 2
    assert "--metrics-export-port" in joined.stderr
    assert not made.output.exists()
