"""Ranks meet before there is a process group: each is a thread here, with a real store."""

import os
import socket
import subprocess
import sys
import threading
from datetime import timedelta

import pytest

from scorers.errors import IncompleteError, UserError
from scorers.stopping import StopRequest
from training.distributed import rendezvous
from training.distributed.errors import RankError
from training.distributed.launch import free_port
from training.distributed.rendezvous import Rendezvous

SIZE = 3


@pytest.fixture(autouse=True)
def place(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)


def on_all(ranks, act):
    """Run `act` on each rank, in one thread each; return its results, or what was raised."""
    found = [None] * len(ranks)

    def run(number):
        try:
            found[number] = act(ranks[number])
        except BaseException as error:  # noqa: BLE001 - compared by the tests
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in reversed(range(len(ranks)))]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
        assert not each.is_alive()
    return found


def meet(work, *, after_main=False, absent=()):
    """Run `work(rank)` on each rank; return the results, and the order in which ranks ran it."""
    order = []
    # They last until all have come through, as that of rank 0 has the store.
    ranks = [Rendezvous(rank, SIZE) for rank in range(SIZE) if rank not in absent]

    def act(each):
        def do():
            order.append(each.rank)
            return work(each.rank)

        return each.together("stage", do, after_main=after_main)

    found = on_all(ranks, act)
    return {each.rank: result for each, result in zip(ranks, found, strict=True)}, order


def failing(rank, error):
    def work(own):
        if own == rank:
            raise error
        return own * 10

    return work


def test_where_all_is_well_each_has_its_own_result():
    assert meet(lambda rank: rank * 10)[0] == {0: 0, 1: 10, 2: 20}


def test_rank_0_is_first_where_that_is_asked_for():
    found, order = meet(lambda rank: rank, after_main=True)
    assert found == {0: 0, 1: 1, 2: 2}
    assert order[0] == 0


@pytest.mark.parametrize("after_main", [False, True])
@pytest.mark.parametrize("error", [UserError("no such folder"), IncompleteError("the disk is gone")])
def test_one_says_why_and_rank_0_which_and_the_others_leave_with_the_status(error, after_main):
    found, _ = meet(failing(2, error), after_main=after_main)
    assert isinstance(found[2], RankError)
    assert "on rank 2 (" in str(found[2])
    assert str(error) in str(found[2])
    assert isinstance(found[0], RankError)
    assert str(found[0]) == "rank 2 could not start, so no rank starts; see its own message."
    assert isinstance(found[1], SystemExit)
    assert found[1].code == found[0].exit_code == found[2].exit_code == error.exit_code


@pytest.mark.parametrize("after_main", [False, True])
def test_what_rank_0_cannot_do_it_says_alone(after_main):
    error = UserError("no such dataset")
    found, order = meet(failing(0, error), after_main=after_main)
    assert found[0] is error
    assert [found[rank].code for rank in (1, 2)] == [2, 2]
    assert (order == [0]) is after_main


def test_what_all_cannot_do_is_said_once():
    def work(rank):
        raise UserError("no such dataset")

    found, _ = meet(work)
    assert isinstance(found[0], UserError)
    assert [found[rank].code for rank in (1, 2)] == [2, 2]


def test_a_defect_on_one_rank_ends_all():
    error = ValueError("a mistake of ours")
    found, _ = meet(failing(1, error))
    assert found[1] is error
    assert found[0].exit_code == found[2].code == 1


def test_a_rank_that_is_gone_before_the_group_starts_is_not_waited_for_for_hours():
    # In a process of its own: torch has one group in each.
    code = """
from datetime import timedelta
import torch
import torch.distributed as dist
from training.distributed import world as distributed
distributed.MEETING_TIMEOUT = timedelta(seconds=1)
try:
    distributed.World(0, 0, 2, 2, torch.device("cpu"))._start_group()
except dist.DistError:
    print("left")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == "left\n", done.stderr


def test_who_is_interrupted_does_not_wait_for_a_rank_that_never_comes():
    error = StopRequest("SIGTERM")
    found, _ = meet(failing(0, error), after_main=True, absent=(2,))
    assert found[0] is error
    assert found[1].code in (75, 4)


def test_a_rank_that_is_asked_to_stop_while_it_waits_stops_the_others(monkeypatch):
    asked = threading.Event()

    def check():
        if asked.is_set() and threading.current_thread().name == "1":
            raise StopRequest("SIGTERM")

    def act(each):
        threading.current_thread().name = str(each.rank)
        assert each.store is not None
        # Rank 2 does not come.
        return each.together("stage", asked.set if each.rank == 1 else lambda: None)

    ranks = [Rendezvous(0, SIZE), Rendezvous(1, SIZE)]
    monkeypatch.setattr(rendezvous, "check", check)
    first, second = on_all(ranks, act)
    assert isinstance(second, StopRequest)
    assert (type(first), first.exit_code) == (RankError, 75)
    assert "was asked to stop" in str(first)


def test_who_does_not_come_is_named_again_and_again_and_then_given_up(monkeypatch, capsys):
    monkeypatch.setattr(rendezvous, "MEETING_TIMEOUT", timedelta(seconds=12))
    monkeypatch.setattr(rendezvous, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(rendezvous, "_LINES_S", 0.2)
    first, second = on_all([Rendezvous(0, SIZE), Rendezvous(1, SIZE)], lambda each: each.meet(lambda: None))
    assert isinstance(first, IncompleteError)
    assert "Rank 2 of 3 did not arrive within 0.2 minutes. Start as many ranks as WORLD_SIZE" in str(first)
    assert (type(second), second.code) == (SystemExit, 4)
    assert capsys.readouterr().err.count("Waiting for rank 2 of 3") > 1


def test_a_rank_0_that_does_not_come_is_given_up(monkeypatch, capsys):
    monkeypatch.setattr(rendezvous, "MEETING_TIMEOUT", timedelta(seconds=1))
    monkeypatch.setattr(rendezvous, "_PATIENCE_S", 0.2)
    place = f"127.0.0.1:{os.environ['MASTER_PORT']}"
    with pytest.raises(RankError, match=f"rank 1 .*cannot reach rank 0 at {place} .*no answer") as caught:
        Rendezvous(1, 2).meet(lambda: None)
    assert caught.value.exit_code == 4
    assert f"Waiting for rank 0 at {place}" in capsys.readouterr().err


@pytest.mark.parametrize("rank", [0, 1])
def test_a_name_that_is_not_known_ends_it_in_seconds(monkeypatch, rank):
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    monkeypatch.setattr(rendezvous, "NAME_TIMEOUT", timedelta(seconds=0.5))
    with pytest.raises(RankError, match=r"'no-such-host\.invalid', does not resolve here. Check MASTER_ADDR") as caught:
        Rendezvous(rank, 2).meet(lambda: None)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(("rank", "problem"), [(0, "cannot listen at"), (1, "is not rank 0")])
def test_a_port_of_another_program_is_named(monkeypatch, rank, problem):
    monkeypatch.setattr(rendezvous, "_STORE_TIMEOUT", timedelta(seconds=2))
    place = ("", int(os.environ["MASTER_PORT"]))
    with socket.create_server(place), pytest.raises(RankError, match=problem) as caught:
        Rendezvous(rank, 2).meet(lambda: None)
    assert caught.value.exit_code == 4


def test_of_two_processes_of_one_rank_the_second_leaves(monkeypatch):
    # Both are of this process here.
    monkeypatch.setattr("os.getpid", threading.get_ident)
    first, *both = on_all([Rendezvous(rank, 2) for rank in (0, 1, 1)], lambda each: each.meet(lambda: None))
    assert first is None
    (error,) = [each for each in both if each is not None]
    assert "is rank 1 too. Give each process its own RANK" in str(error)
    assert error.exit_code == 4


def test_other_versions_are_refused_by_both_ranks(monkeypatch):
    def versions(*names):
        return dict.fromkeys(names, threading.current_thread().name)

    def act(each):
        threading.current_thread().name = str(each.rank + 1)
        return each.meet(lambda: None)

    monkeypatch.setattr(rendezvous, "library_versions", versions)
    first, second = on_all([Rendezvous(0, 2), Rendezvous(1, 2)], act)
    differ = "phf 2, torch 2, deepspeed 2, WORLD_SIZE 2 here, phf 1, torch 1, deepspeed 1, WORLD_SIZE 2 there"
    assert differ in str(second)
    assert (type(first), type(second)) == (RankError, RankError)
    assert first.exit_code == second.exit_code == 2
