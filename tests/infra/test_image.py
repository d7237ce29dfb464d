"""The image's Dockerfile and the lock of its dependencies. `tests.infra.image_steps` runs the steps, by hand."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "infra" / "image"
DOCKERFILE = IMAGE / "Dockerfile"
INSTRUCTIONS = re.findall(
    r"^([A-Z]+) (.*)$",
    re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " "),
    re.MULTILINE,
)
# What NVIDIA's libraries and torch's compiler are called; the pinned environment has torch for CPUs.
GPU = re.compile("(triton|nvidia-.*|cuda-.*)")


def normalized(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def entries(text: str) -> dict[str, str]:
    """Return the version of each package of a requirements file."""
    found = re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)
    assert len(found) == len(dict(found))
    return {normalized(name): version for name, version in found}


LOCKS = {name: (IMAGE / f"requirements{name}.txt").read_text() for name in ("", "-build", "-cpu", "-cuda")}
PINNED = entries((ROOT / "constraints.txt").read_text())


def dependencies() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {normalized(re.split(r"[\[<>=; ]", each)[0]) for each in project["dependencies"]}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_a_hash_for_each_package_and_names_no_index(name: str) -> None:
    for entry in re.split(r"^(?=[\w])", LOCKS[name].removeprefix("# Written by make lock.\n"), flags=re.MULTILINE)[1:]:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
    assert "://" not in LOCKS[name]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_locks_have_what_is_tested_and_all_that_phf_needs(target: str) -> None:
    locked = entries(LOCKS[""] + LOCKS[f"-{target}"])
    assert dependencies() <= locked.keys()
    known = {name: version for name, version in locked.items() if not GPU.fullmatch(name)}
    # Run `make lock` after a change of constraints.txt or pyproject.toml.
    assert known == {name: PINNED[name] + ("+cpu" if (name, target) == ("torch", "cpu") else "") for name in known}
    assert entries(LOCKS["-build"]).items() <= PINNED.items()
    assert bool({name for name in locked if GPU.fullmatch(name)}) == (target == "cuda")


def test_nothing_is_installed_without_a_hash() -> None:
    installs = [rest for name, rest in INSTRUCTIONS if name == "RUN" and "pip install" in rest]
    assert len(installs) == 4
    assert all("--require-hashes" in rest or "--no-index" in rest for rest in installs)
    assert all("--no-deps" in rest for rest in installs)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_target_ends_as_a_user_by_number_and_has_environment_and_code(target: str) -> None:
    stages: dict[str, list[tuple[str, str]]] = {}
    for name, rest in INSTRUCTIONS:
        if name == "FROM":
            current = stages.setdefault(rest.split(" AS ")[1], [])
        current.append((name, rest))
    assert stages[target] == [
        ("FROM", f"base AS {target}"),
        ("COPY", f"--from=build-{target} /opt/venv /opt/venv"),
        ("COPY", "--from=code /opt/phf /opt/venv"),
        ("USER", "1000"),
    ]
    # A secret of pip's does not become part of a layer.
    assert not [rest for name, rest in INSTRUCTIONS if name in ("ARG", "ADD")]


def test_every_part_is_copied_and_sent_to_the_builder() -> None:
    copied = " ".join(rest for name, rest in INSTRUCTIONS if name == "COPY")
    for part in ("phf.py", "scorers", "pipeline", "training", "infra"):
        assert f" {part} " in f" {copied} "
        assert f"!{part}\n" in (ROOT / ".dockerignore").read_text()


def test_a_login_shell_in_the_image_finds_the_programs_of_its_environment_first(tmp_path: Path) -> None:
    dockerfile = DOCKERFILE.read_text()
    written = re.search(r"^RUN (echo .*) > /etc/profile\.d/phf\.sh$", dockerfile, re.MULTILINE)
    environment = re.search(r"^RUN python -m venv (\S+)$", dockerfile, re.MULTILINE)
    assert written
    assert environment
    # A login shell runs Debian's /etc/profile, which resets PATH and then reads the files in profile.d.
    subprocess.run(["sh", "-c", f"{written[1]} > {tmp_path}/phf.sh"], check=True, timeout=60)
    login = f"PATH=/usr/local/bin:/usr/bin:/bin; . {tmp_path}/phf.sh; sh -c 'echo $PATH'"
    done = subprocess.run(["sh", "-c", login], env={}, check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout == f"{environment[1]}/bin:/usr/local/bin:/usr/bin:/bin\n"
