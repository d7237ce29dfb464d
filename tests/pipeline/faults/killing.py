"""Run a sequence of commands on one output, and kill random processes meanwhile."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.storage.failpoints import VARIABLE
from pipeline.storage.local import TEMPORARY
from tests.pipeline import forked
from tests.pipeline.faults.job import DIED, DONE, INCOMPLETE, STOPPED, command_of
from tests.pipeline.faults.test_driver_dies import NAMES
from tests.pipeline.label_job import Labelling, alive, descendants

COMMANDS = ("label", "score", "extend", "retag", "repair")
# Seconds within which a command ends, and all that it has started after it.
DEADLINE_S, LEFT_OVER_S = 240.0, 90.0

_PROSE = [f"This is bloody text {n}. And {n * n} is a fine number. {'x' * (n % 9)} the damn end. " for n in range(32)]
_CODE = [f"import os\ndef f{n}( a,b ):\n  return a+b{' ' * (n % 3)}\n\nx = {n}\n" for n in range(12)]
# Files that do not belong to the dataset: epochs and progress.
_OWN = ("job/epochs/", "job/progress.json")
# Not damaged here: users may edit the card, which looks like damage.
_FREE = (*_OWN, "README.md")
_RAY_NEEDS_S = 10.0
# Ray's raylet waits 15 s for its agents, and gives up.
_STARTS = 4


class Commands(Labelling):
    """A growing corpus and the commands on it; `repair` finds a damaged file.

    Args:
        folder: folder for corpus and output.
        scorer: scorer that `phf score` adds.
    """

    def __init__(self, folder: Path, scorer: str) -> None:
        super().__init__(folder)
        # Ray kills a process a minute after its head has died; here sooner.
        self.env["RAY_gcs_rpc_server_reconnect_timeout_s"] = "9"
        self._scorer = scorer
        self._grow(0)

    def arguments(self, command: str, *, patient: bool = False) -> list[str]:
        """The arguments of a command; `patient` allows many attempts, so that lost workers quarantine nothing."""
        patience = ("--set", "execution.attempts=20", "--workers", "2") if patient and command != "retag" else ()
        label = (
            *("label", "corpus", "--output", "labelled", "--scorer", "pep8=pycodestyle", "--threshold", "pep8=0"),
            *("--unit-size", "500", "--shard-size", "6KB"),
        )
        words = {
            "label": label,
            "score": ("score", "labelled", "--scorer", f"late={self._scorer}", "--threshold", "late=p50"),
            "extend": (*label, "--extend"),
            "retag": ("retag", "labelled", "--threshold", "pep8=p60", "--threshold", "late=p75"),
            "repair": ("repair", "labelled"),
        }
        return [*words[command], *patience]

    def prepare(self, command: str, chance: random.Random) -> str:
        """Prepare a command: grow the corpus or damage a file; return a description."""
        if command == "extend":
            self._grow(1)
        return damage(self.output, chance) if command == "repair" else ""

    def start(self, arguments: Sequence[str], *, ray: bool, failpoints: str = "") -> "Running":
        """Start a command and return at once."""
        env = self.env | ({VARIABLE: failpoints} if failpoints else {})
        log = self.folder / f"{time.monotonic_ns()}.log"
        if not ray:
            return Running(forked.start(arguments, folder=self.folder, env=env, log=log), log)
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "phf", *arguments],
                cwd=self.folder,
                env=env,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        return Running(process, log)

    def finish(self, command: str, *, ray: bool = False) -> "Ended":
        """Run a command to its end, undisturbed."""
        return self.start(self.arguments(command, patient=ray), ray=ray).wait()

    def collect(self) -> None:
        """`phf gc --delete`."""
        # What a process left that died while writing counts as in use for an hour.
        for path in self.output.rglob(f".*{TEMPORARY}"):
            os.utime(path, (0, 0))
        ended = self.start(["gc", "labelled", "--delete"], ray=False).wait()
        assert ended.code == DONE, ended.printed

    def content(self) -> dict[str, Any]:
        """Every file of the output; records without the epoch in which they were written."""
        found = {}
        for path in sorted(path for path in self.output.rglob("*") if path.is_file()):
            name = str(path.relative_to(self.output))
            if not name.startswith(_OWN):
                is_record = name.startswith(("units/", "generations/")) and name.endswith(".json")
                found[name] = _without_staging(json.loads(path.read_bytes())) if is_record else path.read_bytes()
        return found

    def _grow(self, half: int) -> None:
        prose, code = _PROSE[half::2], _CODE[half::2]
        (self.corpus / f"{half}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in prose))
        for number, text in enumerate(code):
            (self.corpus / f"{half}-{number:02d}.py").write_text(text)


def damage(output: Path, chance: random.Random) -> str:
    """Flip a bit of, truncate or delete a file that the dataset or its job needs; return a description."""
    kept = [path for path in sorted(output.rglob("*")) if path.is_file()]
    kept = [path for path in kept if not str(path.relative_to(output)).startswith(_FREE)]
    # Choose each kind of file with the same probability, however many there are.
    kinds = sorted({_kind(path, output) for path in kept})
    kind = chance.choice(kinds)
    path = chance.choice([path for path in kept if _kind(path, output) == kind])
    content, how = bytearray(path.read_bytes()), chance.choice(["flip", "cut", "delete"])
    if how == "flip":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    if how == "delete":
        path.unlink()
    else:
        path.write_bytes(content if how == "flip" else content[: -chance.randrange(1, len(content))])
    return f"{how} {path.relative_to(output)}"


def _kind(path: Path, output: Path) -> str:
    return f"{path.relative_to(output).parts[0]}{path.suffix}"


def _without_staging(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_staging(each) for key, each in value.items() if key not in ("epoch", "staged", "crc32")}
    return [_without_staging(each) for each in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, negative for the signal that killed it, and what it printed on one line."""

    code: int
    printed: str


class Running:
    """A running command with all processes that it has started."""

    def __init__(self, process: Any, log: Path) -> None:
        self._process = process
        self._log = log
        self.below: dict[int, str] = {}

    @property
    def printed(self) -> str:
        """The output so far."""
        return " ".join(self._log.read_text(errors="replace").split()) if self._log.exists() else ""

    @property
    def code(self) -> int | None:
        """The exit status; None while it is running."""
        return self._process.poll() if isinstance(self._process, subprocess.Popen) else self._process.process.exitcode

    def look(self) -> dict[int, str]:
        """Its running child processes, with the names of their programs."""
        now = {pid: _program(pid) for pid in alive(descendants(self._process.pid))}
        self.below |= now
        return now

    def pause(self, seconds: float) -> None:
        """Wait for `seconds`, or until the command has ended."""
        end = time.monotonic() + seconds
        while self.code is None and time.monotonic() < end:
            self.look()
            time.sleep(0.1)

    def kill(self, *pids: int, by: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to processes that may be gone."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, by)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the command itself."""
        if self.code is None:
            self.kill(self._process.pid, by=number)

    def wait(self) -> Ended:
        """Wait for the end.

        Raises:
            TimeoutError: it took too long; all processes have been killed.
        """
        self.pause(DEADLINE_S)
        if self.code is None:
            printed = self.printed
            self.kill(self._process.pid, *self.look())
            raise TimeoutError(f"not done after {DEADLINE_S:g} s: {printed}")
        if isinstance(self._process, forked.Forked):
            self._process.wait()
        return Ended(int(self.code), self.printed)

    def left_over(self) -> dict[int, str]:
        """Processes that it started and that are still running."""
        return {pid: name for pid, name in self.below.items() if pid in alive({pid}) and _program(pid) == name}


def _program(pid: int) -> str:
    words = command_of(pid).split()
    return next((Path(word).name for word in words[:1]), "") if not words or words[0][:5] != "ray::" else words[0]


class Killing:
    """Disturbs commands while they run.

    Args:
        sequence: the commands.
        chance: decides what happens and when.
        usual_s: seconds that each command usually takes.
        ray: whether commands use Ray, or label unit after unit in one process.
        story: log of what happened, for debugging.
    """

    def __init__(
        self, sequence: Commands, chance: random.Random, usual_s: dict[str, float], story: list[str], *, ray: bool
    ) -> None:
        self._sequence = sequence
        self._chance = chance
        self._usual_s = usual_s
        self._ray = ray
        self._story = story
        self._running: list[Running] = []

    def disturb(self, command: str) -> int:
        """Run a command and disturb it; returns its exit status."""
        chance = self._chance
        at = f"{chance.choice(NAMES)}=kill@{chance.randrange(1, 9)}" if chance.random() < 0.3 else ""
        running = self._sequence.start(
            self._sequence.arguments(command, patient=self._ray), ray=self._ray, failpoints=at
        )
        self._running.append(running)
        befallen: list[str] = [at]
        for _ in range(chance.choice([1, 1, 2])):
            running.pause(chance.uniform(0, self._usual_s[command] + (_RAY_NEEDS_S if self._ray else 0)))
            if running.code is None:
                befallen.append(chance.choice(self._deaths())(running))
        ended = running.wait()
        self._story.append(f"{command}: {' '.join(befallen)}: {ended.code}: {ended.printed[-400:]}")
        return ended.code

    def finish(self, command: str) -> int:
        """Run a command undisturbed; retry if the machine is too busy for Ray to start in time."""
        for _ in range(_STARTS):
            running = self._sequence.start(self._sequence.arguments(command, patient=self._ray), ray=self._ray)
            self._running.append(running)
            ended = running.wait()
            self._story.append(f"{command}: {ended.code}: {ended.printed[-1500:]}")
            if ended.code != INCOMPLETE or "The Ray that was started on this machine died" not in ended.printed:
                break
        return ended.code

    def left_over(self) -> dict[int, str]:
        """Processes that outlive the commands that started them."""
        end = time.monotonic() + LEFT_OVER_S
        while time.monotonic() < end:
            found = {pid: name for running in self._running for pid, name in running.left_over().items()}
            if not found:
                return {}
            time.sleep(0.5)
        return found

    def _deaths(self) -> list[Callable[[Running], str]]:
        alone = [self._driver_dies, self._driver_is_signalled, self._driver_is_signalled]
        return [*alone, *[self._some_die] * 3, self._all_die] if self._ray else alone

    def _driver_dies(self, running: Running) -> str:
        running.signal(signal.SIGKILL)
        return "driver"

    def _driver_is_signalled(self, running: Running) -> str:
        number = self._chance.choice([signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
        running.signal(number)
        if self._chance.random() < 0.3:
            running.pause(self._chance.uniform(0, 2))
            running.signal(signal.SIGKILL)
            return f"{number.name}, driver"
        return number.name

    def _some_die(self, running: Running) -> str:
        """Kill workers, Ray's raylet or control service, or another of its programs."""
        by_program: dict[str, list[int]] = {}
        for pid, program in running.look().items():
            by_program.setdefault(program, []).append(pid)
        if not by_program:
            return "nobody"
        program = self._chance.choice(sorted(by_program))
        pids = by_program[program]
        chosen = pids if self._chance.random() < 0.3 else [self._chance.choice(pids)]
        running.kill(*chosen)
        return f"{len(chosen)} {program}"

    def _all_die(self, running: Running) -> str:
        below = list(running.look())
        running.signal(signal.SIGKILL)
        running.kill(*below)
        return "all"


# Possible exit statuses of a disturbed command. A signal in the first moment of Python's start just kills it.
BEFALLEN = (DONE, INCOMPLETE, STOPPED, DIED, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)
