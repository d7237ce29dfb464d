import os

import pytest

from scorers.contract import Execution
from scorers.fingerprint import file_sha256, fingerprint, folder_sha256, library_versions
from scorers.registry import ScorerSpec, build


def test_a_fingerprint_is_stable_and_independent_of_order():
    one = fingerprint("kind", {"a": 1, "b": [2]}, libraries={"x": "1", "y": "2"}, files={"f": "00"})
    other = fingerprint("kind", {"b": [2], "a": 1}, libraries={"y": "2", "x": "1"}, files={"f": "00"})
    assert one == other == "kind-7c8543fe7219f8e7"


@pytest.mark.parametrize(
    "change",
    [{"options": {"a": 2}}, {"revision": 2}, {"libraries": {"x": "2"}}, {"files": {"f": "01"}}],
)
def test_a_fingerprint_changes_with_each_part(change):
    base = {"options": {"a": 1}, "revision": 1, "libraries": {"x": "1"}, "files": {"f": "00"}}
    assert fingerprint("kind", **base) != fingerprint("kind", **{**base, **change})


def test_the_hash_of_a_folder_depends_on_its_content(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "a").write_bytes(b"1")
        (tmp_path / name / "sub" / "b").write_bytes(b"2")
        (tmp_path / name / "__pycache__").mkdir()
        (tmp_path / name / "__pycache__" / "c").write_text(name)
    os.utime(tmp_path / "two" / "a", (0, 0))
    assert folder_sha256(tmp_path / "one") == folder_sha256(tmp_path / "two")
    (tmp_path / "two" / "a").rename(tmp_path / "two" / "z")
    assert folder_sha256(tmp_path / "one") != folder_sha256(tmp_path / "two")
    assert file_sha256(tmp_path / "one" / "a") == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"


def test_a_missing_library_has_a_version_too():
    assert library_versions("no-such-distribution") == {"no-such-distribution": "absent"}


@pytest.mark.parametrize(
    ("kind", "options"), [("linear", {"documents": "prose"}), ("pycodestyle", {"max_line_length": 100})]
)
def test_semantic_options_change_a_scorers_fingerprint_and_execution_does_not(kind, options):
    plain = build("column", ScorerSpec(kind=kind))
    assert build("other", ScorerSpec(kind=kind), Execution(deadline_s=1, threads=4)).fingerprint == plain.fingerprint
    assert build("column", ScorerSpec(kind=kind, **options)).fingerprint != plain.fingerprint
