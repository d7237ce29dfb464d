"""Side by side with what a user would pick instead, each peer in an environment of its own.

Labelling: datatrove's local executor, Ray Data's `map_batches`, and a `multiprocessing.Pool`. They call the same scorer
function on the same files with the same number of workers. Each also gets a record that kills its process, and is
killed half-way with `kill -9`; then its command runs again. Training: transformers' `Trainer`, and a plain loop.
"""

import argparse
import gzip
import hashlib
import importlib.metadata
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.benchmarks.measure import Comparison
from tests.benchmarks.references.watched import PLAIN, POISON, PROGRESS
from tests.benchmarks.text import prose
from tests.benchmarks.training_step import SIZES, Setting, our_step, plain_step

ROOT = Path(__file__).parents[2]
REFERENCES = Path(__file__).parent / "references"
VENVS = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "phf-peers"
ROUNDS, WORKERS, FILES = 3, 2, 16
PARTS = ("labelling", "faults", "training")
# Seconds without a newly scored record, after which a command counts as hung; three times as many before the first.
PATIENCE = 60
_POLL = 0.1
_SCORING = ("alt-profanity-check", "scikit-learn", "scipy", "numpy", "spacy", "pydantic")


class MissingPeerError(Exception):
    """A peer cannot be installed here; the message says why in a sentence."""


@dataclass(frozen=True)
class Peer:
    """A way to label, as `references/SCRIPT INPUT OUTPUT WORKERS`.

    `requires` are packages, in the version installed here unless they name one. `plain` splits and scores with the
    libraries' own calls. phf itself has no script; once it works in one process, without Ray.
    """

    name: str
    script: str = ""
    requires: tuple[str, ...] = ()
    plain: bool = False


PHF = Peer("phf")
PHF_ALONE = Peer("phf --workers 0")
PEERS = (
    Peer("datatrove", "peer_datatrove.py", ("datatrove==0.10.1", "orjson>=3.11", "regex", *_SCORING)),
    Peer("Ray Data", "peer_ray_data.py", ("ray[data]", "pandas", "pyarrow", *_SCORING)),
    Peer("multiprocessing.Pool", "peer_pool.py", _SCORING),
    Peer("multiprocessing.Pool, plain calls", "peer_pool.py", _SCORING, plain=True),
)
TRAINER = ("torch", "transformers", "accelerate")


@dataclass(frozen=True)
class Account:
    """Records of the corpus that an output lacks or has several times, and their bytes of text."""

    lost: int
    lost_bytes: int
    duplicated: int
    duplicated_bytes: int

    def __str__(self) -> str:
        """Return one line."""
        if not self.lost and not self.duplicated:
            return "nothing"
        return f"{self.lost} lost ({self.lost_bytes} B), {self.duplicated} twice ({self.duplicated_bytes} B)"


def account(sizes: Mapping[str, int], found: Mapping[str, int]) -> Account:
    """Compare the corpus, bytes of text by id, with how often an output has each id.

    Raises:
        ValueError: the output has an id that is not in the corpus.
    """
    if unknown := found.keys() - sizes.keys():
        raise ValueError(f"{len(unknown)} ids of the output are not in the corpus")
    missing = [size for name, size in sizes.items() if not found.get(name)]
    extra = [(found[name] - 1, sizes[name]) for name in found if found[name] > 1]
    return Account(
        len(missing), sum(missing), sum(count for count, _ in extra), sum(count * size for count, size in extra)
    )


@dataclass
class Found:
    """How often an output has each id, and the number of its files that cannot be read to the end."""

    ids: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0


def read_output(folder: Path) -> Found:
    """Read the ids of every JSON Lines (also gzip) and Parquet file below the folder's `data`, if there is one.

    Of a file that is torn, what comes before the tear counts. Files with another suffix are unfinished.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = Found()
    for path in sorted((folder / "data").rglob("*")):
        try:
            if path.suffix == ".parquet":
                rows = pq.ParquetFile(path)
                column = "doc_id" if "doc_id" in rows.schema_arrow.names else "id"
                found.ids.update(rows.read([column])[column].to_pylist())
            elif path.suffix in (".jsonl", ".gz"):
                with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
                    for line in lines:
                        found.ids[json.loads(line)["id"]] += 1
        except (OSError, EOFError, ValueError, pa.ArrowException):
            found.unreadable += 1
    return found


@dataclass(frozen=True)
class Run:
    """One command: CPU seconds of all its processes, wall seconds, records scored, and how it ended.

    `ending` is `exit` and a status, `killed`, `hung`, or `endless` where the same records are scored again and again.
    """

    cpu: float
    wall: float
    scored: int
    ending: str


def watch(
    command: Sequence[str],
    env: Mapping[str, str],
    log: Path,
    *,
    kill_after: int | None = None,
    most: int | None = None,
    patience: float = PATIENCE,
) -> Run:
    """Run a command to its end, and end every process that it started.

    Args:
        command: a program and its arguments.
        env: its environment; `PROGRESS` in it names the file that grows by a byte per scored record.
        log: the file that gets what it prints.
        kill_after: kill all its processes, as a machine that dies does, once so many records were scored.
        most: scored records, repeated ones included, after which it is ended as endless.
        patience: seconds without a scored record after which it is ended as hung; three times as many before the first.
    """
    progress = Path(env[PROGRESS])
    progress.write_bytes(b"")
    waited = _waited_for()
    start = moved = time.monotonic()
    scored, ending = 0, ""
    with log.open("w") as printed:
        process = subprocess.Popen(command, env=env, stdout=printed, stderr=printed, cwd=log.parent)
        tree = Tree(process.pid)
        while process.poll() is None and not ending:
            tree.look()
            if (now := progress.stat().st_size) > scored:
                scored, moved = now, time.monotonic()
            if kill_after is not None and scored >= kill_after:
                ending = "killed"
            elif most is not None and scored > most:
                ending = "endless"
            elif time.monotonic() - moved > patience * (1 if scored else 3):
                ending = "hung"
            time.sleep(_POLL)
    wall = time.monotonic() - start
    tree.kill()
    status = process.wait()
    # The tree misses the last moments of a process; the system adds up only those whose parents waited for them.
    cpu = max(tree.cpu, _waited_for() - waited)
    return Run(cpu, wall, progress.stat().st_size, ending or f"exit {status}")


def _waited_for() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Tree:
    """A process and all that descend from it, also those whose parents have died."""

    def __init__(self, root: int) -> None:
        self._root = root
        # CPU seconds by number and start of the process, so that a number used again is another process.
        self._spent: dict[tuple[int, str], float] = {}
        self._alive: set[tuple[int, str]] = set()

    @property
    def cpu(self) -> float:
        """CPU seconds of all processes, each as last seen."""
        return sum(self._spent.values())

    def look(self) -> None:
        """Find new processes, and how much time each has used."""
        tick = os.sysconf("SC_CLK_TCK")
        parents, spent, running = {}, {}, set()
        for path in Path("/proc").glob("[0-9]*/stat"):
            # The process may be gone by now.
            with suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                process = (int(path.parent.name), fields[19])
                parents[process] = int(fields[1])
                spent[process] = (int(fields[11]) + int(fields[12])) / tick
                if fields[0] not in "ZX":
                    running.add(process)
        ours = {each for each in parents if each in self._spent or each[0] == self._root}
        while True:
            numbers = {number for number, _ in ours}
            more = {each for each, parent in parents.items() if parent in numbers} - ours
            if not more:
                break
            ours |= more
        self._spent.update({each: spent[each] for each in ours})
        self._alive = ours & running

    def kill(self) -> None:
        """Kill all that is left with SIGKILL, and return when nothing is."""
        self.look()
        while self._alive:
            # Oldest first: parents before what they would start again.
            for number, _ in sorted(self._alive, key=lambda each: int(each[1])):
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            time.sleep(_POLL)
            self.look()


def install(folder: Path, name: str, requires: Sequence[str]) -> Path:
    """Return the Python of a cached environment with these packages, and make it on first use.

    Raises:
        MissingPeerError: it could not be installed, for example without a network.
    """
    pinned = [each if "=" in each else f"{each}=={importlib.metadata.version(each.split('[')[0])}" for each in requires]
    digest = hashlib.sha256("\n".join([sys.version, *pinned]).encode()).hexdigest()[:8]
    venv = folder / f"{name}-{digest}"
    python, whole = venv / "bin" / "python", venv / "installed"
    if whole.exists():
        return python
    shutil.rmtree(venv, ignore_errors=True)
    venv.parent.mkdir(parents=True, exist_ok=True)
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None:
        raise MissingPeerError("uv is not installed")
    # uv has variables of its own for what pip finds in its.
    env = {**os.environ, "UV_FIND_LINKS": os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS", "")}
    for arguments in (
        ["venv", "--quiet", "--python", sys.executable, str(venv)],
        ["pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), *pinned],
    ):
        done = subprocess.run([uv, *arguments], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"uv ended with status {done.returncode}"]
            raise MissingPeerError(f"{', '.join(requires[:1])} could not be installed: {lines[0].strip(' ×')}")
    whole.touch()
    return python


class Bench:
    """A corpus in files below `folder`, and the runs of peers on it."""

    def __init__(self, folder: Path, venvs: Path, texts: Sequence[str], workers: int = WORKERS) -> None:
        self._folder, self._venvs, self._workers = folder, venvs, workers
        self.sizes = {f"record-{number}": len(text.encode()) for number, text in enumerate(texts)}
        self._corpora = {poison: folder / ("poisoned" if poison else "corpus") for poison in (False, True)}
        # In the middle of the corpus.
        self.poison = f"record-{len(texts) // 2}"
        for poisoned, corpus in self._corpora.items():
            corpus.mkdir(parents=True)
            for part in range(FILES):
                with (corpus / f"{part:02}.jsonl").open("w", encoding="utf-8") as file:
                    for number in range(part * len(texts) // FILES, (part + 1) * len(texts) // FILES):
                        name = f"record-{number}"
                        text = texts[number] + (POISON if poisoned and name == self.poison else "")
                        file.write(json.dumps({"id": name, "text": text}) + "\n")
        packages = folder / "packages" / "phf_watched-1.0.dist-info"
        packages.mkdir(parents=True)
        (packages / "METADATA").write_text("Metadata-Version: 2.1\nName: phf-watched\nVersion: 1.0\n")
        (packages / "entry_points.txt").write_text(
            "[phf.scorers]\nwatched = tests.benchmarks.references.watched:WatchedScorer\n"
        )

    def run(self, peer: Peer, output: str, *, poisoned: bool = False, kill_after: int | None = None) -> Run:
        """Run a peer's command into an output, which it may have begun before.

        Raises:
            MissingPeerError: it could not be installed.
        """
        corpus, target = self._corpora[poisoned], self.output(peer, output)
        if peer.script:
            command = [
                str(self.prepare(peer)),
                str(REFERENCES / peer.script),
                str(corpus),
                str(target),
                str(self._workers),
            ]
        else:
            command = [sys.executable, "-m", "phf", "label", str(corpus), "--output", str(target)]
            workers = "0" if peer == PHF_ALONE else str(self._workers)
            command += ["--scorer", "toxicity=watched", "--workers", workers]
        # One thread per worker, as phf gives its own.
        env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{self._folder / 'packages'}", "OMP_NUM_THREADS": "1"}
        # Compiling its modules anew is no part of a run.
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        env |= {PROGRESS: str(self._folder / "progress")} | ({PLAIN: "1"} if peer.plain else {})
        target.parent.mkdir(parents=True, exist_ok=True)
        return watch(command, env, target.with_suffix(".log"), kill_after=kill_after, most=2 * len(self.sizes))

    def prepare(self, peer: Peer) -> Path:
        """Install a peer if need be, and return its Python.

        Raises:
            MissingPeerError: it could not be installed.
        """
        return install(self._venvs, peer.script.removesuffix(".py"), peer.requires)

    def output(self, peer: Peer, name: str) -> Path:
        """The folder of a peer's output."""
        return self._folder / "outputs" / peer.name.replace(" ", "-") / name

    def account(self, peer: Peer, name: str, *, poisoned: bool = False) -> tuple[Account, int]:
        """Return what an output lacks or has twice, the poison aside, and how many of its files are unreadable."""
        found = read_output(self.output(peer, name))
        sizes = dict(self.sizes)
        if poisoned:
            del sizes[self.poison]
            found.ids.pop(self.poison, None)
        return account(sizes, found.ids), found.unreadable


@dataclass(frozen=True)
class Faults:
    """What became of a corpus after a poison record, and after `kill -9` half-way."""

    poisoned: Run
    poisoned_again: Run
    after_poison: tuple[Account, int]
    killed: Run
    after_kill: tuple[Account, int]
    resumed: Run
    after_resume: tuple[Account, int]


def label(bench: Bench, peers: Sequence[Peer], number: int) -> dict[str, Run]:
    """Label the whole corpus with each peer once, for the round of this number.

    Raises:
        RuntimeError: a peer failed, lost or duplicated records without any fault; contains what it printed.
    """
    runs = {}
    for peer in peers:
        runs[peer.name] = run = bench.run(peer, f"round-{number}")
        found, unreadable = bench.account(peer, f"round-{number}")
        if run.ending != "exit 0" or unreadable or found != Account(0, 0, 0, 0):
            log = bench.output(peer, f"round-{number}").with_suffix(".log").read_text()
            raise RuntimeError(f"{peer.name}: {run.ending}; {found}; {unreadable} unreadable files\n{log[-3000:]}")
    return runs


def break_down(bench: Bench, peer: Peer) -> Faults:
    """Run a peer twice on a corpus with a record that kills its process; kill it half-way, and run it again."""
    poisoned = bench.run(peer, "poisoned", poisoned=True)
    again = bench.run(peer, "poisoned", poisoned=True)
    killed = bench.run(peer, "killed", kill_after=len(bench.sizes) // 2)
    after_kill = bench.account(peer, "killed")
    resumed = bench.run(peer, "killed")
    return Faults(
        poisoned,
        again,
        bench.account(peer, "poisoned", poisoned=True),
        killed,
        after_kill,
        resumed,
        bench.account(peer, "killed"),
    )


def train(python: Path, steps_by_size: Mapping[str, int], rounds: int) -> Iterator[Comparison]:
    """Compare steps of models on one thread, by CPU time: ours with `Trainer`'s, and with those of a plain loop.

    Args:
        python: of the Trainer's environment.
        steps_by_size: how many steps of a round count, by the model's size.
        rounds: how often the three alternate.
    """
    import torch

    from training.distributed.world import World

    # Before this process becomes a rank.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    torch.set_num_threads(1)
    world = World.from_environment()
    world.start()
    for name, steps in steps_by_size.items():
        setting = Setting(name, *SIZES[name], world)
        shape = {"context": setting.context, "micro": setting.micro, "accumulation": setting.accumulation}
        given = {"config": setting.model().causal.config.to_dict(), **shape, "steps": steps}
        command = [str(python), str(REFERENCES / "peer_trainer.py"), json.dumps(given)]
        engine = setting.engine()
        ours, plain = our_step(setting, engine), plain_step(setting)
        rates: dict[str, list[float]] = {"ours": [], "a plain loop": [], "Trainer": []}
        for _ in range(rounds):
            rates["ours"].append(setting.tokens / _cpu_seconds(ours, steps))
            rates["a plain loop"].append(setting.tokens / _cpu_seconds(plain, steps))
            printed = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
            rates["Trainer"].append(setting.tokens / statistics.median(json.loads(printed.splitlines()[-1])))
        engine.close()
        mine = tuple(rates.pop("ours"))
        for what, theirs in rates.items():
            yield Comparison(f"training step of {name}, against {what}", "tokens/CPU s", mine, tuple(theirs))
    world.stop()


def _cpu_seconds(step: Callable[[], object], steps: int) -> float:
    """Return the median of steps, after one that warms up."""
    times = []
    for _ in range(steps + 1):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def run(venvs: Path = VENVS, rounds: int = ROUNDS, parts: Sequence[str] = PARTS) -> Iterator[Comparison]:
    """Yield what could be measured, and say in a sentence what could not."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), venvs, prose(size=10_000_000))
        present = [PHF, PHF_ALONE, *(peer for peer in PEERS if _try(partial(bench.prepare, peer)))]
        if "labelling" in parts:
            yield from _label(bench, present, rounds)
        if "faults" in parts:
            for peer in present:
                if not peer.plain:
                    _say_faults(peer, break_down(bench, peer))
    if "training" in parts and _try(partial(install, venvs, "peer_trainer", TRAINER)):
        yield from train(install(venvs, "peer_trainer", TRAINER), {"tiny": 8, "small": 3}, rounds)


def _try(prepare: Callable[[], object]) -> bool:
    try:
        prepare()
    except MissingPeerError as error:
        print(f"  Left out: {error}.")  # noqa: T201
        return False
    return True


def _label(bench: Bench, peers: Sequence[Peer], rounds: int) -> Iterator[Comparison]:
    found = [label(bench, peers, number) for number in range(rounds)]
    records = len(bench.sizes)
    for peer in peers:
        runs = [each[peer.name] for each in found]
        cpu, wall = (statistics.median(values) for values in zip(*((run.cpu, run.wall) for run in runs), strict=True))
        print(f"  {peer.name}: {cpu:.1f} CPU s, {wall:.1f} s on the clock")  # noqa: T201
    for peer in peers[1:]:
        mine, theirs = (tuple(records / each[name].cpu for each in found) for name in (PHF.name, peer.name))
        yield Comparison(f"label with {WORKERS} workers, against {peer.name}", "records/CPU s", mine, theirs)


def _say_faults(peer: Peer, faults: Faults) -> None:
    first, again = faults.poisoned, faults.poisoned_again
    lost, unreadable = faults.after_poison
    print(  # noqa: T201
        f"  {peer.name}, a poison record: {first.ending}, {first.cpu:.1f} CPU s, {first.wall:.0f} s; run again: "
        f"{again.ending}, {again.cpu:.1f} CPU s, {again.wall:.0f} s; then {lost}, {unreadable} unreadable files"
    )
    killed, resumed = faults.killed, faults.resumed
    torn, torn_files = faults.after_kill
    lost, unreadable = faults.after_resume
    print(  # noqa: T201
        f"  {peer.name}, kill -9: {killed.ending} after {killed.scored} records; in its output {torn}, {torn_files} "
        f"unreadable files; run again: {resumed.ending}, {resumed.scored} records scored, {resumed.cpu:.1f} CPU s, "
        f"{resumed.wall:.1f} s; then {lost}, {unreadable} unreadable files"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark with options of its own."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers", description=__doc__)
    parser.add_argument("--venvs", type=Path, default=VENVS, help="where the environments are kept (%(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args(arguments)
    for result in run(given.venvs, given.rounds, given.parts):
        low, high = min(result.ratios), max(result.ratios)
        rates = f"{result.ours:,.4g} and {result.reference:,.4g} {result.unit}"
        print(f"  {result.name}: {rates}, {result.ratio:.2f} ({low:.2f} to {high:.2f})")  # noqa: T201


if __name__ == "__main__":
    main()
