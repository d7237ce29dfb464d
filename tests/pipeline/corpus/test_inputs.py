"""How inputs resolve to sources, in which order, and what is refused before any work."""

import os
from pathlib import Path

import pytest

from pipeline.corpus.inputs import Source, find_sources
from pipeline.corpus.remote import _glob_regex
from scorers.errors import UserError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))


def uris(*inputs: str, **options: object) -> list[str]:
    return [source.uri for source in find_sources(inputs, **options)]  # type: ignore[arg-type]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    touch(
        tmp_path / "corpus",
        "b.jsonl",
        "a.jsonl.gz",
        "deep/c.jsonl.zst",
        "deep/er/d.parquet",
        "e.txt",
        "code/f.py",
        "code/__init__.py",
        "README.md",
        "_SUCCESS",
        ".hidden.jsonl",
        ".git/g.txt",
        ".jsonl",
    )
    return tmp_path / "corpus"


def test_a_folder_resolves_to_its_known_files_at_any_depth_sorted(corpus: Path) -> None:
    assert find_sources(["corpus"]) == [
        Source("corpus/a.jsonl.gz", "jsonl", "gzip", "prose", 10),
        Source("corpus/b.jsonl", "jsonl", None, "prose", 7),
        Source("corpus/code/__init__.py", "text", None, "python", 16),
        Source("corpus/code/f.py", "text", None, "python", 9),
        Source("corpus/deep/c.jsonl.zst", "jsonl", "zstd", "prose", 16),
        Source("corpus/deep/er/d.parquet", "parquet", None, "prose", 17),
        Source("corpus/e.txt", "text", None, "prose", 5),
    ]


def test_formats_by_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "a.warc.wet.gz", "b.wet", "c.warc", "d.warc.gz", "e.arrow", "f.warc.wat.gz", "g.gz", ".arrow")
    assert [(Path(each.uri).name, each.format, each.compression) for each in find_sources([str(tmp_path)])] == [
        ("a.warc.wet.gz", "warc", "gzip"),
        ("b.wet", "warc", None),
        ("c.warc", "warc", None),
        ("d.warc.gz", "warc", "gzip"),
        ("e.arrow", "arrow", None),
    ]


def test_caches_of_a_saved_dataset_are_skipped_unless_named(tmp_path: Path) -> None:
    touch(tmp_path, "train/data-00000-of-00001.arrow", "train/cache-0f1e.arrow", "train/state.json")
    saved, cache = (str(tmp_path / "train" / name) for name in ("data-00000-of-00001.arrow", "cache-0f1e.arrow"))
    assert uris(str(tmp_path)) == uris(f"{tmp_path}/**/*.arrow") == [saved]
    assert uris(cache) == [cache]


def test_kind_can_be_forced(corpus: Path) -> None:
    assert {source.kind for source in find_sources(["corpus"], "python")} == {"python"}
    assert {source.kind for source in find_sources(["corpus"], "prose")} == {"prose"}


def test_globs(corpus: Path) -> None:
    assert uris("corpus/*.jsonl*") == ["corpus/a.jsonl.gz", "corpus/b.jsonl"]
    assert uris("corpus/**/*.[jp]*") == [
        "corpus/a.jsonl.gz",
        "corpus/b.jsonl",
        "corpus/code/__init__.py",
        "corpus/code/f.py",
        "corpus/deep/c.jsonl.zst",
        "corpus/deep/er/d.parquet",
    ]
    assert uris("corpus/co*") == ["corpus/code/__init__.py", "corpus/code/f.py"]


def test_a_name_that_looks_like_a_glob_is_taken_literally_first(corpus: Path) -> None:
    touch(corpus, "part[1].jsonl", "part1.jsonl")
    assert uris("corpus/part[1].jsonl") == ["corpus/part[1].jsonl"]


def test_the_same_file_named_in_several_ways_is_one_source(corpus: Path) -> None:
    once = uris("corpus")
    assert uris("corpus", "./corpus/b.jsonl", str(corpus / "b.jsonl"), "corpus/*.jsonl", corpus.as_uri()) == [
        str(corpus / name.removeprefix("corpus/")) for name in once
    ]


def test_order_does_not_depend_on_the_order_of_the_arguments(corpus: Path) -> None:
    assert uris("corpus/e.txt", "corpus/b.jsonl") == uris("corpus/b.jsonl", "corpus/e.txt")


def test_outputs_inside_the_corpus_are_skipped(corpus: Path) -> None:
    before = uris("corpus", output="corpus/labelled")
    touch(corpus, "labelled/data/0001/part-00000.parquet", "labelled/x.jsonl")
    assert uris("corpus", output="corpus/labelled") == before
    assert uris("corpus/**/*.jsonl", output="corpus/labelled") == ["corpus/b.jsonl"]
    with pytest.raises(UserError, match="inside the output"):
        find_sources(["corpus/labelled/x.jsonl"], output=str(corpus / "labelled"))


def test_links_to_folders_are_followed_once(corpus: Path) -> None:
    (corpus / "z-link").symlink_to("deep")
    (corpus / "deep" / "loop").symlink_to("..")
    touch(corpus.parent / "elsewhere", "h.txt")
    (corpus / "other").symlink_to("../elsewhere")
    found = uris("corpus")
    assert "corpus/other/h.txt" in found
    assert len(found) == 8


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("nothing", "There is no input nothing"),
        ("nothing/*.jsonl", "No file matches nothing"),
        ("empty", "empty holds no input"),
        ("corpus/README.md", "unknown type.*jsonl.zst"),
        ("corpus/R*", "holds no input"),
        ("", "An input is empty"),
        ("pipe.jsonl", "neither a file nor a folder"),
        ("dangling.jsonl", "dangling.jsonl: No such file"),
        ("nosuchscheme://bucket/a.jsonl", "Cannot read the input nosuchscheme://bucket/a.jsonl"),
        ("s3://key:secret@bucket/a.jsonl", "holds a password"),
        ("corpus/b\udcff.jsonl", "not valid UTF-8"),
    ],
)
def test_invalid_inputs_are_refused(corpus: Path, argument: str, message: str) -> None:
    Path("empty").mkdir()
    os.mkfifo("pipe.jsonl")
    Path("dangling.jsonl").symlink_to("gone.jsonl")
    touch(corpus, "b\udcff.jsonl")
    with pytest.raises(UserError, match=message) as caught:
        find_sources([argument])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("b/*.jsonl", ["b/a.jsonl", "b/.jsonl"], ["b/c/a.jsonl", "b/axjsonl"]),
        ("b/**/*.jsonl", ["b/a.jsonl", "b/c/d/a.jsonl"], ["c/a.jsonl"]),
        ("b/[a-c]*/x", ["b/a/x", "b/cc/x"], ["b/d/x", "b/a/b/x"]),
        ("b/[!a]x", ["b/bx"], ["b/ax", "b//x"]),
    ],
)
def test_globs_of_uris(pattern: str, matching: list[str], others: list[str]) -> None:
    regex = _glob_regex(pattern)
    assert [each for each in matching + others if regex.fullmatch(each)] == matching
