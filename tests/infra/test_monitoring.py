"""The dashboard, the alerts and the scrape configuration name only metrics and labels that the two jobs have."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.labelling.monitoring.metrics import METRICS as LABEL
from training.loop.prometheus import METRICS as TRAIN

INFRA = Path(__file__).resolve().parents[2] / "infra" / "monitoring"
HISTOGRAM = ("_bucket", "_count", "_sum")
LABELS = {
    **{f"ray_{name}": {*each.labels, "dataset", "run"} for name, each in LABEL.items()},
    **{name: {*each.labels, "run", "instance"} for name, each in TRAIN.items()},
}
# Of Ray's own.
NODES = {"ray_node_mem_used", "ray_node_mem_total"}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((INFRA / "grafana.json").read_text())["panels"]
    return found


def shown() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel.get("targets", [])]


def watched() -> list[str]:
    groups = yaml.safe_load((INFRA / "rules.yaml").read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def base(name: str) -> str:
    return next((name.removesuffix(end) for end in HISTOGRAM if name.endswith(end)), name)


def named(query: str) -> Iterator[tuple[str, set[str]]]:
    """The metrics that a query names, each with its labels in braces."""
    for name, labels in re.findall(r"\b((?:ray_phf|phf_train|ray_node)_\w+)(?:\{([^}]*)\})?", query):
        yield base(name), set(re.findall(r"(\w+)=", labels))


def test_the_dashboard_shows_every_metric() -> None:
    assert {name for query in shown() for name, _ in named(query)} == set(LABELS)


def test_queries_name_metrics_and_labels_that_exist() -> None:
    for query in shown() + watched():
        known = {"le"}
        for name, labels in named(query):
            if name in NODES:
                known |= {"instance", "ip"}
                continue
            assert labels <= LABELS[name], query
            known |= LABELS[name]
        if "ALERTS" in query:
            known.add("alertname")
        for grouped in re.findall(r"(?:by|on) \(([^)]*)\)", query):
            assert set(grouped.split(", ")) <= known, query


def test_states_and_parts_that_queries_name_exist() -> None:
    from pipeline.job.run_status import WORKER_STATES
    from training.loop.prometheus import STATES

    units = {"committed", "given-up", "working", "waiting"}
    for query in shown() + watched():
        for states in re.findall(r'\bstate=~?"([^"]*)"', query):
            assert set(states.split("|")) <= {*WORKER_STATES, *STATES, *units}, query


def test_panels_do_not_overlap_and_have_their_own_numbers() -> None:
    cells = [
        (place["x"] + dx, place["y"] + dy)
        for place in (panel["gridPos"] for panel in panels())
        for dx in range(place["w"])
        for dy in range(place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_prometheus_keeps_what_is_shown_and_watched() -> None:
    config = yaml.safe_load((INFRA / "prometheus.yaml").read_text())
    for job in config["scrape_configs"]:
        if "metric_relabel_configs" not in job:
            continue
        kept, dropped = job["metric_relabel_configs"]
        names = {name for query in shown() + watched() for name, _ in named(query)}
        assert all(re.fullmatch(kept["regex"], name) for name in names if name.startswith("ray_"))
        labels = {label for name, each in LABELS.items() if name in names for label in each} | {"le", "ip"}
        assert not [label for label in labels if re.fullmatch(dropped["regex"], label)]
