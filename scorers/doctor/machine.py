"""Collect the facts of a machine that decide how phf runs on it, with a one-line remedy for each problem."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scorers import interpreter
from scorers.amounts import format_count, format_size
from scorers.describe_error import describe
from scorers.errors import UserError
from scorers.fingerprint import library_versions

_GB = 1e9
_LIBRARIES = ("ray", "deepspeed", "transformers", "tokenizers", "spacy", "pyarrow", "numpy")
_SPACY_MODEL = "en_core_web_sm"
_HUB_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TORCH_HOME")
# A worker with spaCy's model or a base-size network holds one to two gigabytes.
_LEAST_MEMORY = 2 * _GB
# For logs and sockets of a local Ray, and for inputs that are unpacked.
_LEAST_SPACE = 1 * _GB
# Native bf16 takes at most as long as fp32, emulated bf16 up to a hundred times as long.
_SLOW_BF16 = 3.0


@dataclass(frozen=True)
class Fact:
    """A fact about the machine.

    Attributes:
        name: its subject, such as `memory`.
        text: the fact, for people.
        data: the same as JSON values.
        remedy: what to do, in one line; None if all is well.
    """

    name: str
    text: str
    data: Any
    remedy: str | None = None


def machine_facts(torch: Mapping[str, Any]) -> list[Fact]:
    """Collect all facts; `torch` is the result of `torch_here.inspect_torch`, or `{"problem": ...}`."""
    collectors: dict[str, Callable[[], Iterator[Fact]]] = {
        "phf": _phf,
        "import path": _import_path,
        "cores": _cores,
        "memory": _memory,
        "torch": lambda: _torch(torch),
        "libraries": _libraries,
        "spaCy model": _spacy_model,
        "folders": _folders,
        "Hugging Face": _hub,
        "Ray's ports": _ray_ports,
    }
    return [fact for name, collect in collectors.items() for fact in _collect_safely(name, collect)]


def _collect_safely(name: str, collect: Callable[[], Iterator[Fact]]) -> Iterator[Fact]:
    try:
        yield from collect()
    except Exception as error:  # noqa: BLE001 - one fact that fails must not hide the others
        yield Fact(name, f"unknown: {describe(error)}", None)


def cgroup_cores() -> float | None:
    """Return how many cores the container around this process may use on average; None for no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            folder = Path("/sys/fs/cgroup/cpu")
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def usable_cores() -> int:
    """Return how many cores this process can keep busy: those it may run on, within its container's limit."""
    ours, limit = len(os.sched_getaffinity(0)), cgroup_cores()
    return ours if limit is None else max(1, min(ours, int(limit)))


def _phf() -> Iterator[Fact]:
    data = {"phf": library_versions("phf")["phf"], "python": platform.python_version(), "executable": sys.executable}
    yield Fact("phf", f"{data['phf']}, Python {data['python']} ({data['executable']})", data)


def _import_path() -> Iterator[Fact]:
    if found := interpreter.find_shadows():
        yield Fact("import path", f"PYTHONPATH replaces {', '.join(found)}", found, interpreter.describe(found))


def _cores() -> Iterator[Fact]:
    ours, limit = len(os.sched_getaffinity(0)), cgroup_cores()
    text = f"{ours} for this process, {os.cpu_count()} in the machine"
    remedy = None
    if limit is not None and limit < ours:
        text += f", the container is limited to {limit:g}"
        remedy = f"Use --workers {max(int(limit), 1)}: more would wait for each other."
    data = {"usable": ours, "machine": os.cpu_count(), "container_limit": limit, "processor": processor()}
    yield Fact("cores", f"{text} ({data['processor']})", data, remedy)


def processor() -> str:
    """Return the model name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory() -> Iterator[Fact]:
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page
    free = min(os.sysconf("SC_AVPHYS_PAGES") * page, total)
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit = next(
        (
            int(each)
            for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
            for each in _lines(path)[:1]
            if each.isdigit() and int(each) < total
        ),
        None,
    )
    text = f"{format_size(free)} free of {format_size(total)}"
    if limit is not None:
        text += f", the container is limited to {format_size(limit)}"
    remedy = None
    if min(free, limit or free) < _LEAST_MEMORY:
        remedy = "A worker needs one to two gigabytes: free memory, or use --workers 1."
    yield Fact("memory", text, {"total": total, "available": free, "container_limit": limit}, remedy)


def _torch(found: Mapping[str, Any]) -> Iterator[Fact]:
    if "problem" in found or found.get("version") is None:
        problem = found.get("problem", "not installed")
        remedy = "Install the pinned build: pip install -c constraints.txt torch"
        yield Fact("torch", str(problem), dict(found), remedy)
        return
    build = f"for CUDA {found['cuda_build']}" if found["cuda_build"] else "for CPUs"
    yield Fact("torch", f"{found['version']}, built {build}, {found['threads']} threads", dict(found))
    yield _gpus(found)
    yield _bf16(found["cpu_product_s"])


def _gpus(found: Mapping[str, Any]) -> Fact:
    devices = found["devices"]
    if devices:
        text = "; ".join(
            f"cuda:{index} {each['name']}, compute capability {each['compute_capability']}, "
            f"{format_size(each['memory'])}, {'bf16' if each['bf16'] else 'no bf16'}"
            for index, each in enumerate(devices)
        )
        old = [index for index, each in enumerate(devices) if not each["bf16"]]
        remedy = f"cuda:{old[0]} emulates bf16: train with --set training.precision=fp16." if old else None
        return Fact("gpus", text, devices, remedy)
    if not Path("/proc/driver/nvidia/version").exists():
        return Fact("gpus", "none", devices)
    if not found["cuda_build"]:
        return Fact("gpus", "driver loaded, but torch is built for CPUs", devices, "Install a CUDA build of torch.")
    return Fact(
        "gpus", "driver loaded, but torch sees no device", devices, "Check CUDA_VISIBLE_DEVICES and the driver."
    )


def _bf16(seconds: Mapping[str, float]) -> Fact:
    ratio = seconds["bf16"] / seconds["fp32"]
    text = f"a product in bf16 takes {ratio:.2g} times as long as in fp32"
    if ratio < _SLOW_BF16:
        return Fact("bf16 on the CPU", text, {"seconds": dict(seconds), "ratio": ratio, "emulated": False})
    return Fact(
        "bf16 on the CPU",
        f"{text}: it is emulated",
        {"seconds": dict(seconds), "ratio": ratio, "emulated": True},
        "Compute in fp32 on this CPU, which is phf's default.",
    )


def _libraries() -> Iterator[Fact]:
    versions = library_versions(*_LIBRARIES)
    missing = [name for name, each in versions.items() if each == "absent"]
    remedy = f"Install what is missing: pip install -c constraints.txt {' '.join(missing)}" if missing else None
    text = ", ".join(f"{name} {each}" for name, each in versions.items())
    yield Fact("libraries", text, versions, remedy)


def _spacy_model() -> Iterator[Fact]:
    from scorers.pii.entities import find_model

    try:
        package = find_model(_SPACY_MODEL)
    except UserError as error:
        yield Fact("spaCy model", "none", {"package": None}, str(error))
        return
    spec = find_spec(package)
    path = str(Path(spec.origin).parent) if spec and spec.origin else package
    number = library_versions(package)[package]
    yield Fact("spaCy model", f"{package} {number} ({path})", {"package": package, "version": number, "path": path})


def _folders() -> Iterator[Fact]:
    temp = Path(tempfile.gettempdir())
    yield _space("temporary files", temp, "Free space, or set another folder, for a local Ray too: TMPDIR=FOLDER.")
    yield _space("shared memory", Path("/dev/shm"), None)  # noqa: S108 - only its size is read
    ray = os.environ.get("RAY_TMPDIR")
    if ray:
        yield _space("Ray's folder", Path(ray), "Free space, or set another folder: RAY_TMPDIR=FOLDER.")


def _space(name: str, folder: Path, remedy: str | None) -> Fact:
    try:
        space = shutil.disk_usage(folder)
    except OSError as error:
        return Fact(name, f"{folder}: {error.strerror}", {"path": str(folder), "free": None}, remedy)
    text = f"{format_size(space.free)} free of {format_size(space.total)} ({folder})"
    data = {"path": str(folder), "free": space.free, "total": space.total}
    return Fact(name, text, data, remedy if space.free < _LEAST_SPACE else None)


def _hub() -> Iterator[Fact]:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    variables = {name: os.environ[name] for name in _HUB_VARIABLES if name in os.environ}
    models = sorted(each.name.removeprefix("models--").replace("--", "/") for each in cache.glob("models--*"))
    text = f"{format_count(len(models), 'model')} in {cache}" if cache.is_dir() else f"no cache yet at {cache}"
    settings = "".join(f", {name}={value}" for name, value in variables.items())
    data = {"cache": str(cache), "exists": cache.is_dir(), "models": models, "environment": variables}
    yield Fact("Hugging Face", text + settings, data)


def _ray_ports() -> Iterator[Fact]:
    from scorers.doctor.ray_ports import open_ports

    found = open_ports()
    if not found:
        return
    text = "; ".join(
        f"{each.port} ({each.what}) on {each.address}, "
        + ("asks for a token" if each.asks_for_token else "does not ask for a token")
        for each in found
    )
    exposed = [str(each.port) for each in found if not each.asks_for_token]
    remedy = (
        f"Whoever reaches port {', '.join(exposed)} can run code as the user who started Ray. Start every node with "
        "RAY_AUTH_MODE=token, or bind it to 127.0.0.1 (ray start --node-ip-address, --dashboard-host), or let a "
        "firewall admit only the cluster's machines."
    )
    yield Fact("Ray's ports", text, [asdict(each) for each in found], remedy if exposed else None)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
