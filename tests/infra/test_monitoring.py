"""The Prometheus and Grafana files name only metrics and labels that a labelling job has."""

import json
import re
from pathlib import Path

import yaml

from pipeline.labelling.monitoring.metrics import METRICS

INFRA = Path(__file__).resolve().parents[2] / "infra" / "monitoring"
HISTOGRAM = ("_bucket", "_count", "_sum")


def test_the_dashboard_names_every_metric_and_label_by_its_own_name() -> None:
    dashboard = json.loads((INFRA / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = set(re.findall(r"ray_(phf_\w+)", "\n".join(queries)))
    plain = {next((name.removesuffix(end) for end in HISTOGRAM if name.endswith(end)), name) for name in named}
    assert plain == set(METRICS)
    for query in queries:
        for name, labels in re.findall(r"ray_(phf_\w+)\{([^}]*)\}", query):
            base = next((name.removesuffix(end) for end in HISTOGRAM if name.endswith(end)), name)
            known = {*METRICS[base].labels, "dataset", "run"}
            assert {each.partition("=")[0] for each in labels.split(",")} <= known
            grouped = re.search(r"by \(([^)]*)\)", query)
            assert grouped
            assert set(grouped[1].split(", ")) <= known | {"le"}


def test_panels_do_not_overlap_and_have_their_own_numbers() -> None:
    panels = json.loads((INFRA / "grafana.json").read_text())["panels"]
    cells = [
        (place["x"] + dx, place["y"] + dy)
        for place in (panel["gridPos"] for panel in panels)
        for dx in range(place["w"])
        for dy in range(place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_prometheus_scrapes_what_the_dashboard_shows() -> None:
    config = yaml.safe_load((INFRA / "prometheus.yaml").read_text())
    for job in config["scrape_configs"]:
        kept, dropped = job["metric_relabel_configs"]
        assert all(re.fullmatch(kept["regex"], f"ray_{name}") for name in METRICS)
        labels = {label for each in METRICS.values() for label in each.labels} | {"dataset", "run", "le"}
        assert not [label for label in labels if re.fullmatch(dropped["regex"], label)]
