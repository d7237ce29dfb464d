"""Run the steps of the image's Dockerfile in folders instead of containers, for machines without a container engine.

    python -m tests.infra.image_steps FOLDER --target cpu --pip-conf pip.conf

Needs root, debootstrap, the network, about 15 GB and many minutes, so no test calls it. Python comes from Debian, not
from the official image. At the end it runs both jobs as the image's user, on a read-only root with the writable places
that the Kubernetes manifests give.
"""

import argparse
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "infra" / "image" / "Dockerfile"
_PACKAGES = ("ca-certificates", "python3.11", "python3.11-venv", "python3.11-dev")
_JOBS = """
set -eux
if touch /opt/venv/here; then exit 1; fi
phf label /usr/lib/python3.11/email --output /shared/labelled --scorer pep8 --scorer pii --threshold pii=0
phf verify /shared/labelled
phf tokenizer train /shared/labelled --vocab-size 512 --output /shared/tokenizer
phf train /shared/labelled --task pep8 --objective conditional --model nano --num-tokens 2e4 --output /shared/run \\
  --tokenizer /shared/tokenizer --ranks 2
"""
_WRITABLE = ("/tmp", "/home/phf", "/shared")


@dataclass
class Stage:
    """A stage of a Dockerfile: the folder that is its root, and what its next command runs with."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0"


def instructions() -> list[tuple[str, str, str]]:
    """Return the instructions of the Dockerfile: the stage, the name and the arguments of each."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found, stage = [], ""
    for name, rest in re.findall(r"^([A-Z]+) (.*)$", text, re.MULTILINE):
        stage = rest.split(" AS ")[1] if name == "FROM" else stage
        found.append((stage, name, rest.strip()))
    return found


def needed(target: str) -> set[str]:
    """Return the stages that a target consists of."""
    found = {target}
    for stage, name, rest in reversed(instructions()):
        if stage in found and (source := re.match(r"(?:--from=)?(\S+)", rest)):
            found |= {source[1]} if name == "FROM" or rest.startswith("--from=") else set()
    return found


def execute(stage: Stage, command: str, mounts: Sequence[str] = ()) -> None:
    """Run a shell command in a stage's root, in a mount namespace of its own."""
    environment = [f"{name}={value}" for name, value in stage.environment.items()]
    inside = ["env", "-i", *environment, "sh", "-c", f"cd {stage.folder} && {command}"]
    user = f"{stage.user}:{stage.user}"
    steps = [*mounts, f"mount --rbind /dev {stage.root}/dev", f"mount -t proc proc {stage.root}/proc"]
    steps += [f"exec chroot --userspec={user} --groups={stage.user} {stage.root} {shlex.join(inside)}"]
    alone = ["unshare", "--mount", "--pid", "--fork", "--propagation", "private", "bash", "-c", " && ".join(steps)]
    subprocess.run(alone, check=True)


def base_image(place: Path) -> Stage:
    """Make Debian with Python, in place of the official image that the Dockerfile names."""
    root = place / "debian"
    if not root.exists():
        subprocess.run(["debootstrap", "--variant=minbase", f"--include={_PACKAGES[0]}", "bookworm", root], check=True)
    shutil.copy("/etc/resolv.conf", root / "etc")
    stage = Stage(root, {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"})
    packages = " ".join(_PACKAGES)
    execute(stage, f"apt-get update -qq && apt-get install -yqq --no-install-recommends {packages}")
    execute(
        stage, "ln -sf /usr/bin/python3.11 /usr/local/bin/python; ln -sf /usr/bin/python3.11 /usr/local/bin/python3"
    )
    return stage


def build(place: Path, target: str, pip_conf: Path) -> Stage:
    """Run the steps of a target and of the stages that it needs, except stages that an earlier run finished."""
    stages: dict[str, Stage] = {}
    wanted = needed(target)
    for name, group in itertools.groupby(instructions(), key=lambda each: each[0]):
        steps = [(instruction, rest) for _, instruction, rest in group]
        if name not in wanted:
            continue
        done = place / f"{name}.json"
        if done.exists():
            root, *others = json.loads(done.read_text())
            stages[name] = Stage(Path(root), *others)
            continue
        before = stages.get(steps[0][1].split()[0]) or base_image(place)
        stage = stages[name] = Stage(place / name, dict(before.environment), before.folder, before.user)
        subprocess.run(["rm", "-rf", stage.root], check=True)
        subprocess.run(["cp", "-a", "--reflink=auto", before.root, stage.root], check=True)
        for instruction, rest in steps[1:]:
            print(f"[{name}] {instruction} {rest}", flush=True)  # noqa: T201
            _follow(stage, instruction, rest, stages, pip_conf)
        done.write_text(json.dumps([str(stage.root), stage.environment, stage.folder, stage.user]))
    return stages[target]


def _follow(stage: Stage, instruction: str, rest: str, stages: dict[str, Stage], pip_conf: Path) -> None:
    if instruction == "ENV":
        for pair in shlex.split(rest):
            variable, _, value = pair.partition("=")
            stage.environment[variable] = value.replace("$PATH", stage.environment["PATH"])
    elif instruction == "WORKDIR":
        stage.folder = rest
        (stage.root / rest[1:]).mkdir(parents=True, exist_ok=True)
    elif instruction == "USER":
        stage.user = rest
    elif instruction == "COPY":
        _copy(stage, rest, stages)
    elif instruction == "RUN":
        secret = stage.root / "etc" / "pip.conf"
        shutil.copy(pip_conf, secret)
        execute(stage, re.sub(r"^--mount=\S+\s+", "", rest))
        secret.unlink()
    elif instruction not in ("ENTRYPOINT", "CMD"):
        sys.exit(f"This script cannot do {instruction}.")


def _copy(stage: Stage, rest: str, stages: dict[str, Stage]) -> None:
    *sources, target = rest.split()
    origin = ROOT
    if sources[0].startswith("--from="):
        origin = stages[sources.pop(0).partition("=")[2]].root
    into = stage.root / (Path(stage.folder) / target).relative_to("/")
    for source in sources:
        for path in sorted(origin.glob(source.lstrip("/"))):
            if path.is_dir():
                into.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-a", f"{path}/.", into], check=True)
            else:
                shutil.copy(path, into)


def try_jobs(stage: Stage) -> None:
    """Run both jobs as the image's user, on a read-only root."""
    (stage.root / "shared").mkdir(exist_ok=True)
    mounts = [f"mount --bind {stage.root} {stage.root}", f"mount -o remount,bind,ro {stage.root}"]
    mounts += [f"mount -t tmpfs -o mode=1777 tmpfs {stage.root}{place}" for place in _WRITABLE]
    execute(stage, _JOBS, mounts)


def main() -> None:
    """Build a target, print its size, and try it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", type=Path)
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--pip-conf", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.place.mkdir(parents=True, exist_ok=True)
    stage = build(arguments.place, arguments.target, arguments.pip_conf)
    size = subprocess.run(["du", "-sxb", stage.root], check=True, capture_output=True, text=True).stdout.split()[0]
    print(json.dumps({"target": arguments.target, "bytes": int(size)}))  # noqa: T201
    try_jobs(stage)


if __name__ == "__main__":
    main()
