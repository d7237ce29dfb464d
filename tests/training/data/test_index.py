"""The layout of a large store's stream is cached beside it; the cache is correct and optional."""

import numpy as np
import pytest

from tests.training.data.test_tagged_stream import long_documents, options_of
from tests.training.stores import make_store
from training.data import index as layout
from training.data.index import StreamOptions
from training.data.tagged_stream import Stream

OPTIONS = [
    {},
    {"held_out": 0.3},
    {"held_out": 0.3, "held_out_seed": 1},
    {"filter_threshold": 0.5},
    {"part": (0.2, 0.8)},
    {"tag_bounds": (0.5,)},
    {"tag_bounds": (0.5,), "drop_tags": 0.3},
    {"tag_bounds": (0.5,), "drop_tags": 0.3, "seed": 1},
    {"tag_bounds": (0.5,), "drop_tags": 0.3, "held_out": 0.3, "filter_threshold": 0.5},
]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "_WORTH_KEEPING", 0)
    return make_store(tmp_path / "store", [*long_documents(), ([([1, 2], 0.0)], True)])


def content(stream):
    batch = stream.blocks(np.arange(stream.num_blocks))
    return (batch.input_ids.tolist(), batch.scores.tolist(), stream.statistics, stream.document_means().tolist())


def test_a_cached_layout_equals_the_computed_one(store, monkeypatch):
    streams = [options_of(context_length=16, **given) for given in OPTIONS]
    computed = [content(Stream(store, "x", options)) for options in streams]
    assert len({str(each) for each in computed}) == len(OPTIONS)
    assert len(list((store.path / layout.FOLDER).iterdir())) == len(OPTIONS)
    monkeypatch.setattr(layout, "compute_layout", None)
    assert [content(Stream(store, "x", options)) for options in streams] == computed
    # The layout excludes block lengths, ids of control tokens and thresholds of tags.
    other = options_of(context_length=8, tag_bounds=(0.1,), drop_tags=0.3)
    assert Stream(store, "x", other).num_tokens == computed[6][2]["tokens"]


def test_cache_keys_of_layouts_are_stable():
    # Existing caches stay valid.
    options = StreamOptions(
        1024, 0, held_out=0.01, tag_bounds=(5.6e-4,), tag_ids=(1, 2), drop_tags=0.01, seed=42, findings="any"
    )
    assert layout._key("toxicity", options) == "fa33bd926c38832e35d6fcb5f1839167"
    assert layout._key("toxicity", StreamOptions(1024, 0, held_out=0.01)) == "5862b4465dd31ef20c9acbac152ee673"


@pytest.mark.parametrize("damage", [b"", b"ARROW1 but not really"])
def test_a_damaged_cache_is_computed_again(store, damage):
    options = options_of(context_length=16, tag_bounds=(0.5,), drop_tags=0.3)
    expected = content(Stream(store, "x", options))
    (file,) = (store.path / layout.FOLDER).glob("*/piece_starts.arrow")
    whole = file.read_bytes()
    file.write_bytes(damage)
    assert content(Stream(store, "x", options)) == expected
    assert file.read_bytes() == whole
    file.unlink()
    assert content(Stream(store, "x", options)) == expected
    assert file.read_bytes() == whole


def test_without_a_writable_cache_the_layout_is_computed_each_time(store):
    (store.path / layout.FOLDER).write_text("where the folder should be")
    options = options_of(context_length=16)
    assert content(Stream(store, "x", options)) == content(Stream(store, "x", options))


def test_documents_in_lists_the_documents_of_blocks(store):
    stream = Stream(store, "x", options_of(context_length=16, held_out=0.3))
    owners = []
    for index in stream.documents:
        owners += [int(index)] * len(stream.document(int(index)).input_ids)
    for chosen in ([0], [stream.num_blocks - 1], [3, 0, 3], list(range(stream.num_blocks))):
        tokens = [place for block in chosen for place in range(block * 16, block * 16 + 16)]
        assert stream.documents_in(chosen).tolist() == sorted({owners[place] for place in tokens})
