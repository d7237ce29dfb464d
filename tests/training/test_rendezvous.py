"""Ranks that meet before there is a process group: each in a thread here, by a real store."""

import threading

import pytest

from scorers.errors import IncompleteError, UserError
from scorers.stopping import StopRequest
from training.run.errors import RankError
from training.run.launch import free_port
from training.run.rendezvous import Rendezvous

SIZE = 3


@pytest.fixture(autouse=True)
def place(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)


def meet(work, *, after_main=False, absent=()):
    """What came of `work(rank)` on each rank: its result, or what was raised."""
    found, order = {}, []
    # They last until all have come through, as that of rank 0 has the store.
    ranks = [Rendezvous(rank, SIZE) for rank in range(SIZE)]

    def run(rank):
        def do():
            order.append(rank)
            return work(rank)

        try:
            found[rank] = ranks[rank].together("stage", do, after_main=after_main)
        except BaseException as error:  # noqa: BLE001 - compared below
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in reversed(range(SIZE)) if rank not in absent]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
        assert not each.is_alive()
    return found, order


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
    assert str(found[0]) == "rank 2 could not start, so none does; it says why."
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


def test_who_is_interrupted_does_not_wait_for_a_rank_that_never_comes():
    error = StopRequest("SIGTERM")
    found, _ = meet(failing(0, error), after_main=True, absent=(2,))
    assert found[0] is error
    assert found[1].code in (75, 4)
