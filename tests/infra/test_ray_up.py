"""The file for `ray up` is valid for Ray, and its commands exist."""

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from phf import app

PATH = Path(__file__).resolve().parents[2] / "infra" / "ray" / "cluster.yaml"
CLUSTER: dict[str, Any] = yaml.safe_load(PATH.read_text())


@pytest.fixture(scope="module")
def prepared() -> dict[str, Any]:
    """Return the cluster with Ray's defaults, as `ray up` checks it."""
    from ray.autoscaler._private.util import prepare_config

    return dict(prepare_config(copy.deepcopy(CLUSTER)))


def test_ray_accepts_the_cluster(prepared: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import validate_config

    validate_config(prepared)
    assert prepared["max_workers"] == len(CLUSTER["provider"]["worker_ips"])


@pytest.mark.parametrize("name", ["setup_command", "head_start_ray_command"])
def test_ray_refuses_a_misspelt_key(prepared: dict[str, Any], name: str) -> None:
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(jsonschema.ValidationError):
        validate_config({**prepared, name: []})


def test_the_nodes_ask_for_the_token_that_the_user_has() -> None:
    from ray.scripts import scripts

    starts = {}
    for role in ("head", "worker"):
        (line,) = [each for each in CLUSTER[f"{role}_start_ray_commands"] if "ray start" in each]
        assert "RAY_AUTH_MODE=token PYTHONSAFEPATH=1 ray start " in line
        words = shlex.split(line)[shlex.split(line).index("start") + 1 :]
        starts[role] = scripts.start.make_context("start", words).params
    assert CLUSTER["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    # No scoring and no rank beside the head, and no dashboard for other machines.
    assert starts["head"]["num_cpus"] == 0
    assert starts["head"]["dashboard_host"] == "127.0.0.1"
    assert starts["worker"]["address"].endswith(f":{starts['head']['port']}")


def test_the_commands_that_the_file_suggests_exist() -> None:
    from ray.scripts import scripts

    lines = [shlex.split(line) for line in re.findall(r"^#   (ray .*)$", PATH.read_text(), re.MULTILINE)]
    for words in lines:
        assert words[1] in scripts.cli.commands, words
    (submitted,) = [words[3] for words in lines if words[1] == "exec"]
    _, program, command, *rest = submitted.split()
    assert program == "phf"
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    commands[command].make_context(command, rest).close()
