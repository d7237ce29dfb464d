"""A rank's share of its machine's cores, and its network interface."""

import socket

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.distributed import host
from training.distributed.host import own_cores, share_of_cores, way_to_others

ALL = 0b11111111


@pytest.mark.parametrize(
    ("mine", "others", "threads"),
    [
        (ALL, [], 8),
        (ALL, [ALL], 4),
        (ALL, [ALL] * 2, 2),
        (ALL, [ALL] * 15, 1),
        (0b1111, [0b11110000], 4),
        (0b1111, [0b11111100], 3),
        (0b111, [0b111] * 2, 1),
    ],
)
def test_a_rank_has_its_own_cores_and_a_share_of_the_others(mine, others, threads):
    assert share_of_cores(mine, [mine, *others]) == threads


@given(st.lists(st.integers(1, 2**40 - 1), min_size=1, max_size=9))
def test_ranks_compute_with_no_more_threads_than_there_are_cores_unless_there_are_too_few(masks):
    shares = [share_of_cores(mine, masks) for mine in masks]
    union = 0
    for mask in masks:
        union |= mask
    assert sum(share for share in shares if share > 1) <= union.bit_count()
    assert all(1 <= share <= mask.bit_count() for share, mask in zip(shares, masks, strict=True))


def test_the_cores_of_this_process_are_those_that_it_may_run_on():
    assert own_cores().bit_count() == len(psutil.Process().cpu_affinity())


def address_here():
    """An address at which other machines reach this one, and its interface."""
    for name, found in psutil.net_if_addrs().items():
        for each in found:
            if each.family == socket.AF_INET and not each.address.startswith("127."):
                return each.address, name
    pytest.skip("this machine has no network")


@pytest.mark.parametrize("name", ["127.0.1.1", "no-such-host.invalid"])
def test_where_the_name_of_a_machine_leads_nowhere_gloo_is_told_the_interface(monkeypatch, name):
    address, interface = address_here()
    monkeypatch.setattr(host.socket, "gethostname", lambda: name)
    assert way_to_others(address, {}) == {"GLOO_SOCKET_IFNAME": interface}
    assert way_to_others(address, {"GLOO_SOCKET_IFNAME": "chosen"}) == {}


def test_where_it_leads_to_the_machine_gloo_is_left_alone(monkeypatch):
    address, _ = address_here()
    monkeypatch.setattr(host.socket, "gethostname", lambda: address)
    assert way_to_others(address, {}) == {}
