"""What of its machine a rank may use: cores that others use too, and the way to the other machines."""

import os
import socket
from collections.abc import Mapping, Sequence

import psutil  # type: ignore[import-untyped]

# Somewhere else: no machine has it (RFC 5737), and nothing is sent there.
_ELSEWHERE = "198.51.100.1"
_ANY_PORT = 9


def own_cores() -> int:
    """The cores on which this process may run, as the bits of a number."""
    return sum(1 << core for core in os.sched_getaffinity(0))


def share_of_cores(mine: int, all_here: Sequence[int]) -> int:
    """How many threads a rank should compute with: one for each core that it alone has, and its share of the others.

    Launchers differ: `srun` gives every task cores of its own, the others leave all cores to all ranks.

    Args:
        mine: the rank's cores, as `own_cores` gives them.
        all_here: those of every rank of this machine, this one's among them.

    Returns:
        At least 1.
    """
    shares = (sum(cores >> core & 1 for cores in all_here) for core in range(mine.bit_length()) if mine >> core & 1)
    # Thirds do not add up to exactly one.
    return max(1, int(sum(1 / users for users in shares) + 1e-6))


def way_to_others(main: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variable that tells gloo at which interface the other machines reach this one, where gloo would not find it.

    By itself it listens at the address of the machine's own name. That is a loopback address on many a Linux (Debian
    writes 127.0.1.1 into /etc/hosts), and no other machine gets there.

    Args:
        main: host of rank 0.
        environment: of this process.

    Returns:
        Nothing where a user has chosen, gloo finds the way, or there is none.
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
    """Also where there is none."""
    return address is None or address.startswith("127.")


def _address_of(host: str) -> str | None:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return None


def _address_towards(host: str) -> str | None:
    """The address of this machine from which it would send to another."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect((host, _ANY_PORT))
        except OSError:
            return None
        address: str = asking.getsockname()[0]
    return address
