"""Run `phf label` as users do, in its own process, with the probe scorer installed."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.pipeline import forked, probe

ROOT = Path(__file__).parents[2]


@dataclass
class Labelling:
    """A corpus and an output below `folder`, and the command that labels the corpus."""

    folder: Path
    scorer: str = "probe=probe"
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.corpus = self.folder / "corpus"
        self.corpus.mkdir(exist_ok=True)
        self.output = self.folder / "labelled"
        self.log = self.folder / "scored.log"
        packages = self.folder / "site-packages"
        if not packages.exists():
            probe.install(packages)
        self.env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(packages), str(ROOT)]),
            probe.LOG: str(self.log),
            **self.env,
        }

    def write(self, texts: Sequence[str], name: str = "corpus.jsonl") -> None:
        """Add a file of records to the corpus."""
        lines = (json.dumps({"id": f"{name}-{index}", "text": text}) for index, text in enumerate(texts))
        (self.corpus / name).write_text("".join(f"{line}\n" for line in lines))

    def command(self, *options: str, output: str | Path | None = None) -> list[str]:
        """The command; its working directory is `folder`, so that two of them use the same names of sources."""
        return [
            *(sys.executable, "-m", "phf", "label", "corpus", "--output", str(output or self.output)),
            *("--scorer", self.scorer, "--threshold", "probe=p50", "--workers", "2", *options),
        ]

    def start(self, *options: str, output: str | Path | None = None) -> "subprocess.Popen[str]":
        """Start the command and return at once."""
        return subprocess.Popen(
            self.command(*options, output=output),
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *options: str, output: str | Path | None = None) -> "subprocess.CompletedProcess[str]":
        """Run the command to its end."""
        return subprocess.run(
            self.command(*options, output=output),
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def run_without_ray(self, *options: str, output: str | Path | None = None) -> "subprocess.CompletedProcess[str]":
        """Run it in one process without Ray, which starts much faster."""
        return forked.run(self.command(*options, output=output)[3:], folder=self.folder, env=self.env)

    def run_undisturbed(self, *options: str, output: str | Path | None = None) -> None:
        """Run it without Ray, and check that it succeeds."""
        result = self.run_without_ray(*options, output=output)
        assert result.returncode == 0, result.stderr

    def hold(self, documents: int) -> None:
        """Make scoring wait once `documents` documents are scored."""
        self.log.with_suffix(".hold").write_text(str(documents))

    def release(self) -> None:
        """Let scoring continue."""
        self.log.with_suffix(".hold").unlink()

    def committed(self) -> set[int]:
        """Units that have a commit record."""
        return {int(path.stem) for path in (self.output / "units" / "0001").glob("*/*.json")}

    def scored(self) -> Counter[str]:
        """How often each text was scored, in all runs together."""
        return Counter(self.log.read_text().split()) if self.log.exists() else Counter()


def data_hashes(output: Path) -> Mapping[str, str]:
    """sha256 of every file below `data/`."""
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((output / "data").rglob("*"))
        if path.is_file()
    }


def wait_for(condition: Callable[[], bool], seconds: float = 200.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.02)


def descendants(pid: int) -> set[int]:
    """Processes below a process, found by their parents."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found: set[int] = set()
    while True:
        more = {child for child, parent in parents.items() if parent in found | {pid}} - found
        if not more:
            return found
        found |= more


def alive(pids: set[int]) -> set[int]:
    """The processes that are still running; zombies do not count."""
    running = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX":
            running.add(pid)
    return running


def stopped(pid: int) -> bool:
    """Whether SIGSTOP has stopped a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
