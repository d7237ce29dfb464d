"""Extract the code blocks of the Markdown pages, and run them unchanged."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Folders of the repository with pages, without folders that commands create.
FOLDERS = ("scorers", "pipeline", "training", "infra", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
# Needs that a block may declare; it is then parsed but not run.
NEEDS = {"network", "cluster", "gpu", "time"}
_BLOCK = re.compile(r"^```(\w+)((?: \w+=\S+)*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced code block, ```` ```language key=value ````, and the heading above it."""

    page: Path
    language: str
    attributes: dict[str, str]
    code: str
    heading: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.heading}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        heading = re.findall(r"^###? (.*)$", text[: match.start()], re.MULTILINE)
        attributes = dict(each.split("=") for each in match[2].split())
        found.append(Block(page, match[1], attributes, match[3], heading[-1] if heading else ""))
    return found


def run(code: str, folder: Path, extra: Mapping[str, str] | None = None, language: str = "sh") -> str:
    """Run code in a folder as a user of this environment would; check that it succeeds, and return its stdout.

    `pip install` works without a network, and installs into the folder instead of the tests' environment.
    """
    tools, packages = folder / ".tools", folder / ".packages"
    tools.mkdir(exist_ok=True)
    for name in ("phf", "pip", "torchrun"):
        module = {"torchrun": "torch.distributed.run"}.get(name, name)
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (tools / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(tools), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(packages), *(each for each in sys.path if each)]),
        "PIP_TARGET": str(packages),
        "PIP_NO_INDEX": "1",
        # "0" turns isolation off, as the option is negative; with isolation pip would download setuptools.
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
        **(extra or {}),
    }
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    return done.stdout
