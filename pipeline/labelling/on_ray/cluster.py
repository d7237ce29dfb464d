"""Start a private local Ray, or join the cluster that the user names."""

import atexit
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.labelling.on_ray.head import HeadLostError
from pipeline.labelling.on_ray.local import local_ray
from pipeline.labelling.on_ray.token import new_token, user_token
from scorers import interpreter
from scorers.errors import UserError
from scorers.printing import refuse_secret
from scorers.stopping import StopRequest, reinstall

if TYPE_CHECKING:
    from ray.job_config import JobConfig

# Results are references and figures, never rows, so a small store suffices, even in a container with little /dev/shm.
_OBJECT_STORE_BYTES = 100 * 1024 * 1024
# Paths of Unix sockets have at most 107 characters, and Ray needs about 65 below its folder.
_MAX_FOLDER_LENGTH = 40
# Seconds for a cluster to answer.
_ANSWER_S = 10.0
_REINSTALL_S = 0.02
_FOLDER_PREFIX = "phf-ray-"
# What a head says that started no server for a Ray client within 30 s.
_SLOW_SERVER = "Starting Ray client server failed"

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def check_address(address: str) -> None:
    """Refuse an unreachable address within seconds; Ray itself would try for minutes.

    Raises:
        UserError: `host:port` or `ray://host:port` cannot be reached.
    """
    refuse_secret(address, "address")
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
    except OSError as error:
        raise UserError(
            f"Cannot join the Ray cluster {address}: {error.strerror or error}. Check the address, or leave --address "
            "out for a local Ray."
        ) from None


def check_metrics_port(port: int, address: str | None) -> None:
    """Refuse a port at which metrics cannot be served; Ray's agent would die of it, and the node with the agent.

    Raises:
        UserError: the port is in use, or a cluster is to be joined, whose nodes already serve metrics at their own.
    """
    if address is not None:
        raise UserError(
            f"--metrics-port {port} is for a local Ray. The nodes of {address} serve metrics at the port that they "
            "were started with (ray start --metrics-export-port); leave --metrics-port out."
        )
    try:
        with socket.create_server(("", port)):
            pass
    except OSError as error:
        raise UserError(
            f"Cannot serve metrics at port {port}: {error.strerror or error}. Choose another --metrics-port."
        ) from None


@contextlib.contextmanager
def ray_cluster(
    address: str | None, cpus: int | None = None, metrics_port: int | None = None, code: Sequence[Path] = ()
) -> Iterator[dict[str, float]]:
    """Start a private local Ray, or join the cluster at `address`; yield its resources, such as `CPU` and `GPU`.

    A local Ray never joins a cluster that happens to run on this machine, requires its own token, and keeps its files
    in a folder that only this user can enter. It dies with this process, even if that is killed: workers within
    seconds, Ray's helper processes within about a minute.

    Args:
        address: of a cluster, such as `auto` or `ray://head:10001`. The code that it needs is sent there; scorers'
            libraries, models and third-party scorers must be installed there.
        cpus: CPUs of the local Ray; None for those of this machine or container.
        metrics_port: port at which the local Ray serves metrics to everyone who can reach this machine; None for any.
        code: packages and modules to send to a cluster besides those for labelling.

    Raises:
        UserError: the cluster cannot be joined, or Ray does not start.
    """
    import ray

    if ray.is_initialized():
        raise UserError("This process is already connected to Ray. Disconnect first: ray.shutdown().")
    with _local(cpus, metrics_port) if address is None else _remote(address, code):
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        yield resources


@contextlib.contextmanager
def _local(cpus: int | None, metrics_port: int | None) -> Iterator[None]:
    import ray

    os.environ.update(_ENVIRONMENT)
    interpreter.make_safe()
    parent = tempfile.gettempdir()
    if len(parent) > _MAX_FOLDER_LENGTH:
        parent = "/tmp"  # noqa: S108 - mkdtemp makes a private folder below it
    with (
        _private_folder(Path(parent)) as private,
        new_token(),
        _keeping_lost_ray(),
        local_ray(
            lambda: ray.init(
                address="local",
                job_config=_job_config(),
                num_cpus=cpus,
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                # Ray makes its folder accessible to everyone (mode 0777), so it goes below the private one.
                _temp_dir=str(private / "r"),
                _metrics_export_port=metrics_port,
            ),
            logs=private / "r",
        ),
        _connected(lambda: None, ""),
    ):
        yield


@contextlib.contextmanager
def _private_folder(parent: Path) -> Iterator[Path]:
    """Create a folder that only this user can enter, and delete it afterwards; also delete those of killed runs.

    The kernel releases the lock on `owner` when the process that holds it dies, so a folder whose lock is free is an
    orphan. The file is renamed to `owner` only once it is locked, so that a new folder does not look like an orphan.
    """
    for left in parent.glob(f"{_FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError):
            _remove_orphan(left)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=parent))
    try:
        with (folder / "new").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            (folder / "new").rename(folder / "owner")
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_orphan(folder: Path) -> None:
    """Remove a private folder of this user whose run is over. Other users may have created folders of such names.

    Raises:
        OSError: the folder is in use, or not a private folder.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != stat.S_IRWXU:
        return
    # Follow no link, and do not block on a pipe without a writer.
    descriptor = os.open(folder / "owner", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as owner:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _remote(address: str, more: Sequence[Path]) -> Iterator[None]:
    import ray

    import pipeline
    import scorers

    code = [*(str(Path(package.__path__[0])) for package in (scorers, pipeline)), *map(str, more)]
    # Set the environment of our workers only; that of the cluster's Ray is not ours.
    sent = {"py_modules": code, "env_vars": interpreter.SAFE_PATH}
    # A Ray client sends no folders, and its job configuration would be read where phf may not be installed.
    config: dict[str, Any] = {} if address.startswith("ray://") else {"job_config": _job_config()}
    with (
        user_token(address),
        _keeping_lost_ray(),
        _connected(
            lambda: _starting_again_when_slow(
                lambda: ray.init(
                    address=address, runtime_env=sent, log_to_driver=False, logging_level=logging.ERROR, **config
                )
            ),
            f"Cannot join the Ray cluster {address}",
        ),
    ):
        yield


def _starting_again_when_slow(start: Callable[[], object]) -> None:
    """Connect once more if the head gave up waiting for the process that serves this client, as a busy head does."""
    try:
        start()
    except RuntimeError as error:
        if _SLOW_SERVER not in str(error):
            raise
        start()


def _job_config() -> "JobConfig":
    """A job configuration that keeps the driver's folders off its workers' import paths.

    Ray puts the driver's working directory before the standard library on its workers' import paths, unless the job
    has a working directory of its own (`ray._private.worker.connect`).
    """
    from ray.job_config import JobConfig

    class WithoutFolders(JobConfig):
        def _runtime_env_has_working_dir(self) -> bool:
            return True

    return WithoutFolders()


@contextlib.contextmanager
def _keeping_lost_ray() -> Iterator[None]:
    """If the head is lost, do not shut Ray down, and end this process without Ray's exit handlers."""
    try:
        yield
    except HeadLostError as error:
        # Shutting Ray down would block until Ray's native code kills the process, and exiting normally would crash in
        # its destructors.
        atexit.register(_leave, error.exit_code)
        raise


@contextlib.contextmanager
def _connected(start: Callable[[], object], problem: str) -> Iterator[None]:
    import ray

    try:
        try:
            start()
        except SystemExit:
            # Raised by the SIGTERM handler that Ray installs here.
            raise StopRequest(signal.SIGTERM.name) from None
        except (ConnectionError, OSError, RuntimeError, TimeoutError, ValueError) as error:
            raise UserError(f"{problem}: {_summarize(error)}.") from None
        reinstall()
        # Even without `log_to_driver`, Ray prints messages of its raylets to stdout, which is for results.
        setattr(ray._private.worker, "print_to_stdstream", lambda *_, **__: None)  # noqa: B010 - for mypy
        yield
    except HeadLostError:
        raise
    except BaseException:
        _shut_down()
        raise
    _shut_down()


def _shut_down() -> None:
    """Shut Ray down; meanwhile reinstall our signal handlers, because its native code resets SIGTERM to the default."""
    import ray

    closing = threading.Thread(target=ray.shutdown, name="closing-ray")
    closing.start()
    while closing.is_alive():
        closing.join(_REINSTALL_S)
        reinstall()


def _summarize(error: Exception) -> str:
    """The first line of an error's message, or the last if the first only introduces a traceback from the cluster."""
    first, *_, last = (str(error).strip() or type(error).__name__).splitlines() * 2
    return (last if first.endswith(":") else first).rstrip(".")


def _leave(status: int) -> None:
    """End the process at once, without other exit handlers (such as Ray's) and native destructors."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
