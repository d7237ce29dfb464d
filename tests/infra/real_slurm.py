"""A real Slurm on this machine: munge, slurmctld and several slurmd, with files, ports and a key of their own."""

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from training.distributed.launch import free_port

# Each has so many CPUs by its own account: Slurm counts them, and binds nobody to them.
NODES = ("n1", "n2", "n3")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")


def why_not() -> str:
    """Return why no Slurm can be started here; empty if one can."""
    missing = [each for each in PROGRAMS if shutil.which(each) is None]
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install --yes slurm-wlm munge"
    return "" if os.geteuid() == 0 else "only root can start slurmd"


class RealSlurm:
    """A running Slurm.

    Attributes:
        base: its folder.
        private: a folder of which the node n3 sees another one of the same name.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.private = base / "private"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def conf(self) -> Path:
        return self.base / "slurm.conf"

    def start(self) -> None:
        for name in ("state", "spool", "log", "private"):
            (self.base / name).mkdir()
        key = self.base / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.base.chmod(0o755)  # munged refuses a socket that not everybody can reach
        munge = [f"--{name}={self.base}/munge.{name.split('-')[0]}" for name in ("socket", "pid-file", "log-file")]
        munge += [f"--key-file={key}", f"--seed-file={self.base}/munge.seed", "--foreground"]
        self._start("munged", ["munged", *munge])
        self._until(lambda: (self.base / "munge.socket").exists())
        self._write_conf()
        self._start("slurmctld", ["slurmctld", "-D", "-i", "-f", str(self.conf)])
        for node in NODES:
            self.start_node(node)
        self._until(lambda: self.run("sinfo", "-h", "-o", "%T %D") == f"idle {len(NODES)}\n")

    def _write_conf(self) -> None:
        host = socket.gethostname().partition(".")[0]
        lines = [
            "ClusterName=phf",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={free_port()}",
            # Ports of Ray and of ranks follow from it, and other workers of pytest may have a Slurm here too.
            f"FirstJobId={100 * random.randrange(1, 140)}",
            "SlurmUser=root",
            "SlurmdUser=root",
            "AuthType=auth/munge",
            # A requeued job waits until the credential of its last attempt has expired: 120 s by default.
            f"AuthInfo=socket={self.base}/munge.socket,cred_expire=15",
            f"StateSaveLocation={self.base}/state",
            f"SlurmdSpoolDir={self.base}/spool/%n",
            f"SlurmctldPidFile={self.base}/slurmctld.pid",
            f"SlurmdPidFile={self.base}/slurmd.%n.pid",
            f"SlurmctldLogFile={self.base}/log/slurmctld.log",
            f"SlurmdLogFile={self.base}/log/slurmd.%n.log",
            "SlurmdParameters=config_overrides",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU",
            "SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2",
            "ReturnToService=2",
            "SlurmdTimeout=0",  # on a busy machine a node that answers late is not lost
            "KillWait=5",
            "MpiDefault=none",
            "JobRequeue=1",
        ]
        for node in NODES:
            port = f"Port={free_port()} CPUs=4 State=UNKNOWN"
            lines.append(f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 {port}")
        lines.append(f"PartitionName=main Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP")
        self.conf.write_text("\n".join(lines) + "\n")

    def start_node(self, node: str) -> None:
        (self.base / "spool" / node).mkdir(exist_ok=True)
        command = ["slurmd", "-D", "-N", node, "-f", str(self.conf)]
        if node == NODES[-1]:
            hidden = f'mount -t tmpfs none "{self.private}" && exec "$@"'
            command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", hidden, "sh", *command]
        self._start(node, command)

    def kill_node(self, node: str) -> None:
        """Kill a node's daemon and all processes of its jobs at once, as if it lost its power."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()
        for process in self._processes(node):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        # A controller notices a lost node after SlurmdTimeout; here at once.
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")

    def _processes(self, node: str | None = None) -> Iterator[psutil.Process]:
        """Yield the processes of jobs of this Slurm, on one node or on all, and the daemons of their steps."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                words = process.cmdline()
                step = bool(words) and words[0].startswith("slurmstepd:") and process.ppid() != os.getpid()
                variables = process.environ()
                ours = variables.get("SLURM_CONF") == str(self.conf)
                where = variables.get("SLURMD_NODENAME")
                if ours and (where == node if node else where or step):
                    yield process

    def _start(self, name: str, command: list[str]) -> None:
        with (self.base / "log" / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, "SLURM_CONF": str(self.conf)},
                start_new_session=True,
            )

    def _until(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not ready():
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in (self.base / "log").iterdir())
            assert time.monotonic() < deadline, logs
            time.sleep(0.3)

    def run(self, *words: str) -> str:
        """Run a command of Slurm; return what it prints, or nothing if it fails."""
        variables = {**os.environ, "SLURM_CONF": str(self.conf)}
        done = subprocess.run(words, env=variables, capture_output=True, text=True, check=False, timeout=60)
        return done.stdout

    def stop(self) -> None:
        self.run("scancel", "--user=root")
        for name in [*NODES, "slurmctld", "munged"]:
            daemon = self._daemons.get(name)
            if daemon is not None:
                daemon.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    daemon.wait(20)
                daemon.kill()
                daemon.wait()
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def real_slurm() -> Iterator[RealSlurm]:
    """Start a Slurm, and end all its processes."""
    # Its sockets have short paths.
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        slurm = RealSlurm(Path(folder))
        try:
            slurm.start()
            yield slurm
        finally:
            slurm.stop()
