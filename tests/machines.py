"""Several machines on this one: network namespaces with addresses of their own, joined by a switch, and Ray on them."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

_RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
_PORT = 6390
# Ray notices a machine that is cut off after seconds instead of more than a minute.
_QUICK = json.dumps(
    {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 500,
        "health_check_timeout_ms": 1000,
        "health_check_failure_threshold": 3,
    }
)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def why_not() -> str | None:
    """Why this machine cannot have network namespaces; None if it can."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    name = f"phf-try-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "add", "switch", "type", "bridge")
        _ip("netns", "exec", name, "true")
    except FileNotFoundError:
        return "`ip` is not installed: apt-get install iproute2"
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be used here: {error.stderr.decode().strip()}"
    finally:
        with contextlib.suppress(OSError):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
    return None


class Machines:
    """Machines `0` to `number - 1`, each with one network interface that can be cut off.

    They share all folders but that of Ray's session, in which a driver would find the newest node of all machines.
    """

    def __init__(self, number: int) -> None:
        self._sessions = Path(os.environ["RAY_TMPDIR"])
        self._prefix = f"phf-{os.getpid()}"
        self._switch = f"{self._prefix}-switch"
        self.number = number
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "switch", "up")
        for machine in range(number):
            name, port = self._name(machine), f"port{machine}"
            _ip("netns", "add", name)
            _ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", self._switch, "link", "set", port, "master", "switch", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "address", "add", f"{self.address(machine)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")

    def _name(self, machine: int) -> str:
        return f"{self._prefix}-{machine}"

    def address(self, machine: int) -> str:
        """The address of a machine."""
        return f"10.83.0.{machine + 1}"

    def on(self, machine: int, command: Sequence[str]) -> list[str]:
        """The command that runs another on a machine."""
        own = self._sessions.with_name(f"{self._sessions.name}-{machine}")
        own.mkdir(exist_ok=True)
        private = ["sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"', str(own), str(self._sessions)]
        return ["ip", "netns", "exec", self._name(machine), *private, *command]

    def cut(self, machine: int) -> None:
        """Take the link of a machine down."""
        _ip("-n", self._switch, "link", "set", f"port{machine}", "down")

    def heal(self, machine: int) -> None:
        """Take it up again."""
        _ip("-n", self._switch, "link", "set", f"port{machine}", "up")

    def close(self) -> None:
        """Remove the machines."""
        for machine in range(self.number):
            shutil.rmtree(self._sessions.with_name(f"{self._sessions.name}-{machine}"), ignore_errors=True)
        for name in (*(self._name(machine) for machine in range(self.number)), self._switch):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


class RayOfMachines:
    """Ray on machines: the head on machine 0, without cores, and one core on each of the others.

    `environment` is that of its nodes, which their workers inherit.
    """

    def __init__(self, machines: Machines, environment: Mapping[str, str], folder: Path) -> None:
        self.machines = machines
        self.address = f"{machines.address(0)}:{_PORT}"
        self._environment = dict(environment)
        self._folder = folder
        self._nodes: dict[int, subprocess.Popen[bytes]] = {}
        self.start(0)

    def start(self, machine: int) -> None:
        """Start the node of a machine, and return when it has joined."""
        place = [f"--node-ip-address={self.machines.address(machine)}", "--object-store-memory=80000000"]
        if machine == 0:
            place += ["--head", f"--port={_PORT}", "--num-cpus=0", "--include-dashboard=false"]
            place += [f"--system-config={_QUICK}"]
        else:
            place += [f"--address={self.address}", "--num-cpus=1"]
        # A raylet ends itself when its agents take over 15 s to start, as they may on a busy machine.
        for attempt in range(3):
            log = self._folder / f"node-{machine}-{time.monotonic_ns()}.log"
            with log.open("wb") as sink:
                process = subprocess.Popen(
                    self.machines.on(machine, [*_RAY, *place]),
                    env=self._environment,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                )
            self._nodes[machine] = process
            deadline = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < deadline:
                if b"Ray runtime started" in log.read_bytes():
                    return
                time.sleep(0.2)
            self.kill(machine)
            assert attempt < 2, log.read_text()

    def kill(self, machine: int) -> None:
        """Kill everything of the node of a machine."""
        process = self._nodes.pop(machine)
        below: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            below = psutil.Process(process.pid).children(recursive=True)
        for each in [process, *below]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()

    def wait_until_it_ended(self, machine: int, seconds: float = 60) -> None:
        """Wait until the node of a machine has ended by itself."""
        self._nodes[machine].wait(seconds)

    def close(self) -> None:
        """Kill all nodes."""
        for machine in list(self._nodes):
            self.kill(machine)


@contextlib.contextmanager
def ray_of_machines(number: int, environment: Mapping[str, str], folder: Path) -> Iterator[RayOfMachines]:
    """Ray on so many machines, all of which are gone at the end of the context."""
    machines = Machines(number)
    try:
        ray = RayOfMachines(machines, environment, folder)
        try:
            for machine in range(1, number):
                ray.start(machine)
            yield ray
        finally:
            ray.close()
    finally:
        machines.close()
