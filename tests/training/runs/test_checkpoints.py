"""Checkpoints count only when every byte is present; a damaged checkpoint is never loaded."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from scorers.errors import UserError
from training.runs.checkpoints import (
    MARKER_NAME,
    Checkpoint,
    Damage,
    commit,
    newest,
    require,
    rotate,
    set_aside,
    stage,
    staging_path,
    steps,
    verify,
)

FILES = {
    "deepspeed/model.pt": b"weights" * 50,
    "deepspeed/optimizer.pt": b"moments" * 30,
    "generators-00000.pt": b"seed",
}


def write(folder, step, *, ranks=1):
    staging = stage(folder, step)
    for name, content in FILES.items():
        path = staging / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content + str(step).encode())
    return commit(folder, step, ranks=ranks, seconds=1.5)


def test_a_committed_checkpoint_verifies_and_names_every_file(tmp_path):
    write(tmp_path, 7, ranks=2)
    found, damaged = newest(tmp_path)
    assert isinstance(found, Checkpoint)
    assert damaged == []
    assert found.path.name == "step-00000007"
    assert (found.marker.step, found.marker.ranks, found.marker.seconds) == (7, 2, 1.5)
    assert [file.path for file in found.marker.files] == sorted(FILES)
    assert (
        json.loads((found.path / MARKER_NAME).read_text())["files"][0]["size"] == len(FILES["deepspeed/model.pt"]) + 1
    )


def test_the_newest_wins_by_number(tmp_path):
    for step in (9, 100_000_000, 10):
        write(tmp_path, step)
    assert newest(tmp_path)[0].marker.step == 100_000_000


def test_nothing_staged_is_ever_found(tmp_path):
    write(tmp_path, 1)
    staging = stage(tmp_path, 2)
    (staging / "half").write_bytes(b"x")
    (staging / MARKER_NAME).write_text((tmp_path / "step-00000001" / MARKER_NAME).read_text())
    assert newest(tmp_path)[0].marker.step == 1
    assert stage(tmp_path, 3) == staging_path(tmp_path, 3)
    assert not staging.exists()


def test_no_folder_and_an_empty_folder_have_no_checkpoint(tmp_path):
    assert require(tmp_path / "none") == (None, [])
    assert require(tmp_path) == (None, [])


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda path: (path / MARKER_NAME).unlink(), "it has no COMMITTED marker"),
        (lambda path: (path / MARKER_NAME).write_text("{"), "its COMMITTED marker is unreadable"),
        (lambda path: (path / "deepspeed/model.pt").unlink(), "deepspeed/model.pt is missing"),
        (lambda path: (path / "deepspeed/model.pt").write_bytes(b"short"), "deepspeed/model.pt has 5 bytes, not 351"),
        (lambda path: shutil.rmtree(path / "deepspeed"), "deepspeed/model.pt is missing"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_skipped(tmp_path, harm, reason):
    write(tmp_path, 1)
    write(tmp_path, 2)
    harm(tmp_path / "step-00000002")
    found, damaged = newest(tmp_path)
    assert found.marker.step == 1
    assert damaged == [Damage(tmp_path / "step-00000002", reason)]


@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(FILES)), place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(tmp_path, name, place, bit):
    folder = tmp_path / "flipped"
    shutil.rmtree(folder, ignore_errors=True)
    path = write(folder, 1).path / name
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    assert verify(folder / "step-00000001") == Damage(folder / "step-00000001", f"the content of {name} has changed")


def test_where_all_are_damaged_the_run_is_refused_and_each_is_named(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 2)
    for path in tmp_path.iterdir():
        (path / "generators-00000.pt").unlink()
    with pytest.raises(
        UserError, match=r"(?s)No checkpoint.*step-00000002: .*missing.*step-00000001: .*missing.*Restore"
    ):
        require(tmp_path)


def test_a_damaged_one_of_the_same_step_is_set_aside_and_a_whole_one_replaced(tmp_path):
    for _ in range(2):
        write(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    (tmp_path / "step-00000001" / "generators-00000.pt").write_bytes(b"what is left")
    write(tmp_path, 1)
    assert isinstance(verify(tmp_path / "step-00000001"), Checkpoint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged-step-00000001", "step-00000001"]
    assert (tmp_path / "damaged-step-00000001" / "generators-00000.pt").read_bytes() == b"what is left"


def test_rotation_keeps_the_newest(tmp_path):
    for step in (1, 2, 3, 20):
        write(tmp_path, step)
    rotate(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000020"]


def test_what_the_run_has_gone_back_behind_is_set_aside_and_never_in_the_way(tmp_path):
    for step in (5, 9, 10):
        write(tmp_path, step)
    whole = (tmp_path / "step-00000009/generators-00000.pt").read_bytes()
    for before, step in ((5, 6), (6, 9)):
        write(tmp_path, step)
        set_aside(tmp_path, before, step)
        rotate(tmp_path, 2)
        assert newest(tmp_path)[0].marker.step == step
    assert steps(tmp_path) == [6, 9]
    assert (tmp_path / "damaged-step-00000009/generators-00000.pt").read_bytes() == whole
    write(tmp_path, 7)
    set_aside(tmp_path, 6, 7)
    assert steps(tmp_path) == [6, 7]
    assert {path.name for path in tmp_path.iterdir()} == {
        "step-00000006",
        "step-00000007",
        "damaged-step-00000009",
        "damaged-step-00000009-2",
        "damaged-step-00000010",
    }


def test_a_failing_commit_leaves_the_earlier_ones_alone(tmp_path, monkeypatch):
    write(tmp_path, 1)
    stage(tmp_path, 2)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.runs.checkpoints.write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        commit(tmp_path, 2, ranks=1, seconds=0.0)
    assert newest(tmp_path)[0].marker.step == 1
