"""A rank's share of its machine's cores, and the network interface that reaches other machines."""

import os
import socket
from collections.abc import Mapping, Sequence

import psutil  # type: ignore[import-untyped]

# A documentation address that no machine has (RFC 5737), to find the default route. Nothing is sent there.
_ELSEWHERE = "198.51.100.1"
_ANY_PORT = 9


def own_cores() -> int:
    """The cores on which this process may run, as a bit mask."""
    return sum(1 << core for core in os.sched_getaffinity(0))


def share_of_cores(mine: int, all_here: Sequence[int]) -> int:
    """The number of threads for a rank, at least 1: its exclusive cores, and its share of those used by others too.

    Launchers differ: `srun` gives every task its own cores, the others leave all cores to all ranks.

    Args:
        mine: the cores of this rank, from `own_cores`.
        all_here: the cores of every rank on this machine, including this one.
    """
    shares = (sum(cores >> core & 1 for cores in all_here) for core in range(mine.bit_length()) if mine >> core & 1)
    # Three thirds do not add up to exactly 1 in floating point.
    return max(1, int(sum(1 / users for users in shares) + 1e-6))


def way_to_others(main: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment variable that sets gloo's network interface, if gloo would choose a wrong one.

    By default gloo listens on the address of the machine's own name. On many Linux systems that is a loopback address
    (Debian writes 127.0.1.1 into /etc/hosts), which no other machine can reach.

    Args:
        main: the host of rank 0.
        environment: the environment of this process.

    Returns:
        Empty if the user chose an interface, gloo's choice works, or there is no other.
    """
    if "GLOO_SOCKET_IFNAME" in environment or not _is_loopback(_address_of(socket.gethostname())):
        return {}
    for host in (main, _ELSEWHERE):
        mine = _address_towards(host)
        if not _is_loopback(mine):
            names = [name for name, found in psutil.net_if_addrs().items() if any(mine == a.address for a in found)]
            return {"GLOO_SOCKET_IFNAME": names[0]} if names else {}
    return {}


def _is_loopback(address: str | None) -> bool:
    """Whether an address is missing or a loopback address."""
    return address is None or address.startswith("127.")


def _address_of(host: str) -> str | None:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return None


def _address_towards(host: str) -> str | None:
    """The address from which this machine would send to a host."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, _ANY_PORT))
        except OSError:
            return None
        address: str = probe.getsockname()[0]
    return address
