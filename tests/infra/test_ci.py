"""The workflows for continuous integration are valid, and run commands that exist."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from phf import app

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = {"github": "vendor.github-workflows", "gitlab": "vendor.gitlab-ci"}
every_host = pytest.mark.parametrize("host", SCHEMAS)


def text(host: str) -> str:
    return (ROOT / "infra" / "ci" / f"{host}.yaml").read_text()


def problems(host: str, workflow: str, folder: Path) -> str:
    """Return what the published schema of a host's workflows finds wrong."""
    path = folder / f"{host}.yaml"
    path.write_text(workflow)
    command = [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", SCHEMAS[host], path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout if done.returncode else ""


@every_host
def test_a_workflow_is_valid(host: str, tmp_path: Path) -> None:
    assert problems(host, text(host), tmp_path) == ""


@pytest.mark.parametrize(("host", "right", "wrong"), [("github", "runs-on:", "run-on:"), ("gitlab", "paths:", "path:")])
def test_a_misspelt_key_is_found(host: str, right: str, wrong: str, tmp_path: Path) -> None:
    assert problems(host, text(host).replace(right, wrong), tmp_path)


@every_host
def test_the_commands_exist_and_use_what_earlier_ones_write(host: str) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = [shlex.split(line) for line in re.findall(r"\.venv/bin/phf (.*)$", text(host), re.MULTILINE)]
    assert [words[0] for words in found] == ["label", "verify", "train"]
    for command, *words in found:
        # Parse as the command itself does; this raises if the command would refuse.
        commands[command].make_context(command, list(words)).close()
    outputs = [words[words.index("--output") + 1] for words in found if "--output" in words]
    assert found[1][1] == found[2][1] == outputs[0]
    kept = re.findall(r"^\s+(?:- )?(\w+)/\w+\.jsonl?$", text(host), re.MULTILINE)
    assert set(kept) == set(outputs)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"make (\w+)", text(host))) <= {*targets}


def test_github_runs_only_actions_pinned_by_commit_and_may_only_read() -> None:
    workflow = yaml.safe_load(text("github"))
    assert workflow["permissions"] == {"contents": "read"}
    used = [step["uses"] for step in workflow["jobs"]["smoke"]["steps"] if "uses" in step]
    assert len(used) == 4
    assert all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", each) for each in used)


@pytest.mark.slow
def test_the_steps_of_github_label_a_shard_and_train_on_it(tmp_path: Path) -> None:
    texts = (
        f"The mill by the river {i} still turns. What damn fool {i} broke the wheel? Nobody knows.\n" for i in range(60)
    )
    (tmp_path / "shard.jsonl").write_text("".join(json.dumps({"text": text * 4}) + "\n" for text in texts))
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    steps = yaml.safe_load(text("github"))["jobs"]["smoke"]["steps"]
    install, *commands = [step["run"] for step in steps if "run" in step]
    assert install == "make install"
    for command in commands:
        # As in the workflow, but with fewer tokens.
        cheap = command.replace("--num-tokens 2e5", "--num-tokens 2e4")
        done = subprocess.run(
            ["bash", "-e", "-c", cheap],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"{cheap}\n{done.stdout}{done.stderr}"
    kept = next(step["with"]["path"] for step in steps if "upload-artifact" in step.get("uses", "")).split()
    assert [path for path in kept if not (tmp_path / path).is_file()] == []
