"""The alerts parse, and each fires when it should and not when it should not: `promtool test rules`."""

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pipeline.commands.inspect import inspect
from pipeline.commands.label import label
from pipeline.config import LabelExecution
from training.commands.train import train
from training.config import TrainingConfig

RULES = Path(__file__).resolve().parents[2] / "infra" / "monitoring" / "rules.yaml"
CASES: Mapping[str, Mapping[str, Any]] = yaml.safe_load(Path(__file__).with_name("alerts.yaml").read_text())

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool: apt-get install prometheus (Debian)"
)


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_every_alert_has_cases_and_says_what_to_do() -> None:
    assert [each["alert"] for each in alerts()] == list(CASES)
    for each in alerts():
        assert each["labels"].keys() == {"severity"}
        assert each["labels"]["severity"] in {"warning", "critical"}
        assert each["annotations"].keys() == {"summary", "action"}


def test_settings_and_options_that_actions_name_exist() -> None:
    text = RULES.read_text()
    for section, name in re.findall(r"\b(execution|training)\.(\w+)", text):
        assert name in {"execution": LabelExecution, "training": TrainingConfig}[section].model_fields, name
    flags = " ".join(flag for command in (label, train, inspect) for flag in flags_of(command))
    for option in re.findall(r"--[a-z][a-z-]+", text):
        assert option in flags.split(), option


def flags_of(command: Callable[..., None]) -> list[str]:
    made = typer.Typer()
    made.command()(command)
    return [flag for each in typer.main.get_command(made).params for flag in each.opts]


def test_the_operators_object_holds_the_same_rules() -> None:
    printed = subprocess.run([RULES.with_name("prometheus-rule")], capture_output=True, text=True, check=True).stdout
    stored = RULES.parents[1] / "kubernetes" / "base" / "monitoring" / "prometheus-rule.yaml"
    assert stored.read_text() == printed, "print it again: its first line says how"
    assert yaml.safe_load(printed)["spec"] == yaml.safe_load(RULES.read_text())


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_files_are_valid() -> None:
    promtool("check", "rules", str(RULES))
    promtool("check", "config", str(RULES.with_name("prometheus.yaml")))


@needs_promtool
def test_each_alert_fires_and_does_not(tmp_path: Path) -> None:
    files = []
    for rule in alerts():
        # Each alert alone: promtool would evaluate all of them in every minute of every case.
        name = rule["alert"]
        (tmp_path / f"{name}.rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": name, "rules": [rule]}]}))
        tests = [case(name, fires=fires) for fires in (True, False)]
        files.append(tmp_path / f"{name}.test.yaml")
        files[-1].write_text(yaml.safe_dump({"rule_files": [f"{name}.rules.yaml"], "tests": tests}))
    promtool("test", "rules", *map(str, files))


def case(name: str, *, fires: bool) -> dict[str, Any]:
    given = CASES[name]
    series: Sequence[Mapping[str, str]] = given["fires" if fires else "quiet"]
    return {
        "interval": "1m",
        "input_series": [{"series": key, "values": values} for each in series for key, values in each.items()],
        "promql_expr_test": [
            {
                "expr": f'count by (alertname) (ALERTS{{alertname="{name}", alertstate="firing"}})',
                "eval_time": given["at"],
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1}] if fires else [],
            }
        ],
    }
