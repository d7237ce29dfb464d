"""A path read from a file stays below its folder, whatever the path and whatever is on disk."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorers.paths import UnsafePathError, check_path, irregular_files, place_below

HOSTILE = [
    "",
    "/",
    "/etc/passwd",
    ".",
    "..",
    "../x",
    "a/../../x",
    "a/..",
    "./a",
    "a/./b",
    "a//b",
    "a/",
    "C:\\x",
    "C:x",
    "a\\b",
    "a\0b",
    "a\nb",
    "a\x1b[31m",
    "a\x85b",
    "\ud800",
    "x" * 256,
    "a/" * 600 + "b",
]


@pytest.mark.parametrize("path", HOSTILE)
def test_a_path_that_is_not_plain_is_refused_and_shown_escaped(path: str) -> None:
    with pytest.raises(ValueError, match="not a plain relative path") as refused:
        check_path(path)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("path", ["a", "data/0001/part-00000.parquet", ".x", "...", "..a/b..", "données/ü 1", "ab:c"])
def test_a_plain_path_passes(path: str) -> None:
    assert check_path(path) == path


@given(st.text(st.sampled_from("ab./\\:\0\n"), max_size=12))
def test_a_path_that_passes_is_below_the_folder(path: str) -> None:
    try:
        check_path(path)
    except ValueError:
        return
    assert os.path.normpath(f"/root/{path}") == f"/root/{path}"
    assert str(place_below(Path("/no/such/root"), path)) == f"/no/such/root/{path}"


@pytest.mark.parametrize("path", ["/", "/a", "..", "../x", "a/../../x", "./a", "a//b", "a\0"])
def test_a_place_is_never_outside_the_folder(tmp_path: Path, path: str) -> None:
    with pytest.raises(UnsafePathError, match="not a relative path"):
        place_below(tmp_path, path)


def test_no_link_leads_to_a_place(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "folder").mkdir(parents=True)
    outside.mkdir()
    (outside / "file").write_text("precious")
    (root / "file").symlink_to(outside / "file")
    (root / "folder" / "link").symlink_to(outside)
    (root / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "pipe")
    for path in ("file", "folder/link", "folder/link/file", "folder/link/new", "dangling", "dangling/x"):
        with pytest.raises(UnsafePathError, match="is a link"):
            place_below(root, path)
    with pytest.raises(UnsafePathError, match="neither a file nor a folder"):
        place_below(root, "pipe")
    assert place_below(root, "file", replaced=True) == root / "file"
    with pytest.raises(UnsafePathError, match=r"folder/link is a link"):
        place_below(root, "folder/link/file", replaced=True)
    assert {path for path, _ in irregular_files(root)} == {"file", "folder/link", "dangling", "pipe"}


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real" / "a").mkdir(parents=True)
    (tmp_path / "root").symlink_to("real")
    assert place_below(tmp_path / "root", "a/b") == tmp_path / "root" / "a" / "b"
    assert not list(irregular_files(tmp_path / "root"))
