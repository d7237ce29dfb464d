import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.stores import make_store
from training.data.index import StreamOptions
from training.data.tagged_stream import Stream

EOS, ALIGNED, MISALIGNED, BOS = 900, 901, 902, 905
QUANTILES = (901, 903, 902, 904)
MASK = 2**64 - 1


def mix(word):
    word = (word + 0x9E3779B97F4A7C15) & MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def mixed(first, *others):
    state = mix(first)
    for other in others:
        state = mix(state ^ other)
    return state


def naive_stream(documents, hashes, options):
    """The reference implementation of the stream, token by token."""
    ids, scores = [], []
    for (document, is_null), text_hash in zip(documents, hashes, strict=True):
        if is_null or (mixed(options.held_out_seed, 1, text_hash) >> 11) / 2**53 < options.held_out:
            continue
        mean = np.mean([score for _, score in document] or [0.0])
        if options.filter_threshold is not None and mean > options.filter_threshold:
            continue
        place = (mixed(options.seed, 3, text_hash) >> 11) / 2**53
        if options.part is not None and not options.part[0] <= place < options.part[1]:
            continue
        between = [EOS] if options.bos_id in (None, EOS) else [EOS, options.bos_id]
        ids += between
        scores += [0.0] * len(between)
        for number, (tokens, score) in enumerate(document):
            dropped = (mix(mixed(options.seed, 2, text_hash) ^ number) >> 11) / 2**53 < options.drop_tags
            if options.tag_bounds is not None and not dropped:
                if len(options.tag_bounds) == 1:
                    ids.append(ALIGNED if np.float32(score) <= np.float32(options.tag_bounds[0]) else MISALIGNED)
                else:
                    ids.append(QUANTILES[sum(np.float32(score) > np.float32(bound) for bound in options.tag_bounds)])
                scores.append(score)
            ids += tokens
            scores += [score] * len(tokens)
    return ids, scores


def options_of(**given):
    bounds = given.get("tag_bounds") or ()
    ids = (ALIGNED, MISALIGNED) if len(bounds) < 2 else QUANTILES[: len(bounds) + 1]
    return StreamOptions(eos_id=EOS, tag_ids=ids, **{"context_length": 4, **given})


SENTENCE = st.tuples(st.lists(st.integers(0, 99), max_size=6), st.sampled_from([0.0, 0.125, 0.25, 0.5]))
DOCUMENT = st.tuples(st.lists(SENTENCE, max_size=8), st.sampled_from([False, False, False, True]))
OPTIONS = st.fixed_dictionaries(
    {
        "context_length": st.integers(1, 9),
        "held_out": st.sampled_from([0.0, 0.3]),
        "held_out_seed": st.integers(0, 3),
        "filter_threshold": st.sampled_from([None, 0.0, 0.25]),
        "tag_bounds": st.sampled_from([None, (0.0,), (0.125,), (1.0,), (0.0, 0.25), (0.0, 0.125, 0.3)]),
        "drop_tags": st.sampled_from([0.0, 0.4, 1.0]),
        "seed": st.integers(0, 3),
        "part": st.sampled_from([None, None, (0.0, 0.4), (0.4, 1.0)]),
        # The BOS token, if it differs from EOS.
        "bos_id": st.sampled_from([None, EOS, BOS]),
    }
)


@given(st.lists(DOCUMENT, max_size=12), OPTIONS, st.data())
@settings(max_examples=150)
def test_blocks_are_those_of_the_naive_stream(documents, given_options, data):
    options = options_of(**given_options)
    # Two documents may have the same text.
    hashes = data.draw(st.lists(st.integers(0, MASK), min_size=len(documents), max_size=len(documents)))
    with tempfile.TemporaryDirectory() as folder:
        stream = Stream(make_store(Path(folder) / "store", documents, hashes=hashes), "x", options)
        ids, scores = naive_stream(documents, hashes, options)
        length = options.context_length
        assert stream.num_tokens == len(ids)
        assert stream.num_blocks == len(ids) // length
        for index in range(stream.num_blocks):
            block, block_scores = stream.block(index)
            assert block.tolist() == ids[index * length : (index + 1) * length]
            assert block_scores.tolist() == scores[index * length : (index + 1) * length]
        if stream.num_blocks:
            chosen = data.draw(st.lists(st.integers(0, stream.num_blocks - 1), max_size=8))
            batch = stream.blocks(chosen)
            assert batch.input_ids.tolist() == [ids[i * length : (i + 1) * length] for i in chosen]
            assert batch.scores.tolist() == [scores[i * length : (i + 1) * length] for i in chosen]
            assert (batch.input_ids.dtype, batch.scores.dtype) == (np.int64, np.float32)


@given(st.lists(DOCUMENT, max_size=12), OPTIONS)
@settings(max_examples=60)
def test_statistics_match_the_naive_stream(documents, given_options):
    options = options_of(**given_options)
    hashes = list(range(1, len(documents) + 1))
    with tempfile.TemporaryDirectory() as folder:
        statistics = Stream(make_store(Path(folder) / "store", documents), "x", options).statistics
        ids, _ = naive_stream(documents, hashes, options)
    assert statistics["tokens"] == len(ids)
    assert statistics["tokens_eos"] == ids.count(EOS) == statistics["documents_used"]
    assert statistics.get("tokens_bos", 0) == ids.count(BOS)
    assert statistics["tokens_control"] == sum(ids.count(each) for each in QUANTILES)
    assert statistics["tokens_text"] == sum(each < EOS for each in ids)
    assert statistics["documents_used"] + sum(statistics["documents_left_out"].values()) == len(documents)
    assert statistics["documents_left_out"]["null_score"] == sum(is_null for _, is_null in documents)
    assert statistics["blocks"] * options.context_length + statistics["tokens_dropped_at_end"] == len(ids)
    if options.tag_bounds is not None:
        tags = statistics["tags"]
        names = [name for name in tags if name != "dropped"]
        assert names[:2] == (["aligned", "misaligned"] if len(names) == 2 else ["quantile_1", "quantile_2"])
        assert [tags[name] for name in names] == [ids.count(each) for each in options.tag_ids]
        assert sum(tags.values()) == statistics["sentences"]
    else:
        assert "tags" not in statistics


def long_documents(seed=0):
    generator = np.random.default_rng(seed)
    return [
        (
            [
                (generator.integers(0, 99, generator.integers(0, 4)).tolist(), float(generator.random()))
                for _ in range(size)
            ],
            False,
        )
        for size in (0, 1, 255, 256, 257, 1000, 3)
    ]


@pytest.mark.parametrize("given_options", [{}, {"tag_bounds": (0.5,)}, {"tag_bounds": (0.5,), "drop_tags": 0.3}])
def test_documents_of_many_sentences(tmp_path, given_options):
    options = options_of(context_length=16, **given_options)
    documents = [
        ([(tokens, float(np.float32(score))) for tokens, score in document], null)
        for document, null in long_documents()
    ]
    stream = Stream(make_store(tmp_path / "store", documents), "x", options)
    ids, scores = naive_stream(documents, range(1, len(documents) + 1), options)
    batch = stream.blocks(range(stream.num_blocks))
    whole = stream.num_blocks * 16
    assert batch.input_ids.ravel().tolist() == ids[:whole]
    assert batch.scores.ravel().tolist() == scores[:whole]


def test_a_sentence_longer_than_many_blocks(tmp_path):
    documents = [([([7] * 50, 0.25)], False)]
    stream = Stream(make_store(tmp_path / "store", documents), "x", options_of(context_length=8, tag_bounds=(0.0,)))
    assert stream.block(0)[0].tolist() == [EOS, MISALIGNED] + [7] * 6
    assert stream.block(0)[1].tolist() == [0.0] + [0.25] * 7
    assert stream.block(5)[0].tolist() == [7] * 8


def test_a_tag_and_its_sentence_can_be_in_different_blocks(tmp_path):
    documents = [([([1, 2], 0.0), ([3, 4], 1.0)], False)]
    stream = Stream(make_store(tmp_path / "store", documents), "x", options_of(context_length=5, tag_bounds=(0.5,)))
    assert stream.num_tokens == 7
    assert stream.block(0)[0].tolist() == [EOS, ALIGNED, 1, 2, MISALIGNED]
    assert stream.block(0)[1].tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]


def test_indices_out_of_range_are_refused(tmp_path):
    stream = Stream(make_store(tmp_path / "store", [([([1, 2, 3, 4], 0.0)], False)]), "x", options_of())
    for index in (-1, 1):
        with pytest.raises(IndexError):
            stream.block(index)
    assert stream.blocks([]).input_ids.shape == (0, 4)


def test_dropped_tags_depend_only_on_seed_and_sentence(tmp_path):
    first = ([([n], 0.0) for n in range(40)], False)
    second = ([([n + 50], 0.0) for n in range(40)], False)

    def tags_of(name, documents, hashes, **given):
        options = options_of(context_length=1, tag_bounds=(0.5,), drop_tags=0.5, **given)
        stream = Stream(make_store(tmp_path / name, documents, hashes=hashes), "x", options)
        ids = stream.blocks(range(stream.num_blocks)).input_ids.ravel()
        return set(ids[1:][ids[:-1] == ALIGNED].tolist())  # the token after each tag identifies its sentence

    both = tags_of("a", [first, second], [11, 22])
    assert both == tags_of("b", [second, first], [22, 11])
    assert both == tags_of("c", [([], False), second, first], [5, 22, 11])
    assert {each for each in both if each < 50} == tags_of("d", [first], [11])
    assert both != tags_of("e", [first, second], [11, 22], seed=1)
    assert 20 < len(both) < 60


def test_shares_match_the_options(tmp_path):
    generator = np.random.default_rng(1)
    documents = [([([1], float(score)) for score in generator.random(10)], False) for _ in range(2000)]
    hashes = generator.integers(0, 2**63, 2000)
    store = make_store(tmp_path / "store", documents, hashes=hashes)
    stream = Stream(store, "x", options_of(tag_bounds=(0.3,), drop_tags=0.1, held_out=0.2))
    statistics = stream.statistics
    assert statistics["documents_left_out"]["held_out"] == pytest.approx(400, abs=60)
    assert statistics["tags"]["dropped"] / statistics["sentences"] == pytest.approx(0.1, abs=0.01)
    assert statistics["tags"]["aligned"] / statistics["tokens_control"] == pytest.approx(0.3, abs=0.02)
    aligned, sentences = stream.count_aligned(0.3)
    assert aligned / sentences == pytest.approx(0.3, abs=0.02)
    assert len(stream.sentence_scores()) == sentences == statistics["sentences"]


def test_held_out_documents_are_left_out_and_have_a_score(tmp_path):
    documents = [([([n], 0.5)], n % 5 == 0) for n in range(100)]
    store = make_store(tmp_path / "store", documents)
    stream = Stream(store, "x", options_of(held_out=0.4, context_length=2))
    held_out = set(stream.held_out_documents().tolist())
    used = set(stream.documents.tolist())
    assert held_out
    assert not held_out & used
    assert held_out | used == {n for n in range(100) if n % 5}
    other = Stream(store, "x", options_of(held_out=0.4, held_out_seed=1))
    assert set(other.held_out_documents().tolist()) != held_out
    # Filtering does not change what is held out.
    filtered = Stream(store, "x", options_of(held_out=0.4, filter_threshold=0.1))
    assert set(filtered.held_out_documents().tolist()) == held_out
    assert filtered.num_tokens == 0


def test_a_single_document_has_every_tag_and_marks_its_text(tmp_path):
    documents = [([([9], 0.0)], False), ([([1, 2], 0.0), ([], 1.0), ([3], 1.0)], False)]
    store = make_store(tmp_path / "store", documents, text_bytes=[1, 77])
    stream = Stream(store, "x", options_of(tag_bounds=(0.5,), drop_tags=1.0))
    document = stream.document(1)
    assert document.input_ids.tolist() == [EOS, ALIGNED, 1, 2, MISALIGNED, MISALIGNED, 3]
    assert document.is_text.tolist() == [False, False, True, True, False, False, True]
    assert document.text_bytes == 77
    swapped = stream.document(1, swap_tags=True)
    assert swapped.input_ids.tolist() == [EOS, MISALIGNED, 1, 2, ALIGNED, ALIGNED, 3]
    many = Stream(store, "x", options_of(tag_bounds=(-1.0, 0.5, 0.7)))
    assert many.document(1).input_ids.tolist() == [EOS, 903, 1, 2, 904, 904, 3]
    assert many.document(1, swap_tags=True).input_ids.tolist() == [EOS, 902, 1, 2, 901, 901, 3]
    begun = Stream(store, "x", options_of(bos_id=BOS)).document(1)
    assert begun.input_ids.tolist() == [BOS, 1, 2, 3]
    assert begun.is_text.tolist() == [False, True, True, True]
    plain = Stream(store, "x", options_of()).document(1)
    assert plain.input_ids.tolist() == [EOS, 1, 2, 3]


def test_tags_need_their_ids():
    with pytest.raises(ValueError, match="need one id more"):
        StreamOptions(context_length=4, eos_id=0, tag_bounds=(0.0,), tag_ids=(1,))


def test_thresholds_are_compared_in_float32_like_the_datasets(tmp_path):
    # 0.1 is not a float32: the nearest one is larger, and still counts as 0.1.
    documents = [([([1], 0.1)], False)]
    stream = Stream(make_store(tmp_path / "store", documents), "x", options_of(tag_bounds=(0.1,), context_length=3))
    assert stream.block(0)[0].tolist() == [EOS, ALIGNED, 1]
