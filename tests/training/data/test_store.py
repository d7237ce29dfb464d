import hashlib
import json
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

from pipeline.dataset import open_dataset
from pipeline.dataset.derived import derived_place
from pipeline.dataset.manifest import MANIFEST_NAME
from scorers.errors import UserError
from tests.datasets import make_dataset, sentences_of
from tests.training.stores import byte_tokenizer
from training.data.build_store import ensure_store
from training.data.store import TokenStore
from training.data.tokenizers import wrap_tokenizer

DOCUMENTS = [
    "Good morning. Good evening! Is it good?",
    "",
    ("x = 1\ny = 2\n", "python"),
    "Grüße. 😀 <|endoftext|> is no end. " * 20,
    "One",
    "Nul \x00 byte. " * 7,
]
TEXTS = [each if isinstance(each, str) else each[0] for each in DOCUMENTS]
SENTENCES = [sentences_of(text, "python" if "x = " in text else "prose") for text in TEXTS]


def toxicity(sentence):
    return len(sentence) / 100


@pytest.fixture(scope="module")
def tokenizer():
    return wrap_tokenizer("bytes", byte_tokenizer(TEXTS))


def dataset_at(folder, **given):
    scores = {"toxicity": toxicity, "pep8": lambda sentence: 0.5}
    make_dataset(folder, DOCUMENTS, scores, applies={"pep8": "python"}, **given)
    return open_dataset(str(folder))


@pytest.fixture
def dataset(tmp_path):
    return dataset_at(tmp_path / "labelled")


@pytest.mark.parametrize("shard_rows", [None, 1, 4])
@pytest.mark.parametrize("characters", [1, 50, 1 << 20])
def test_a_store_has_every_sentence_tokenised_alone_with_its_scores(
    tmp_path, tokenizer, monkeypatch, shard_rows, characters
):
    monkeypatch.setattr("training.data.texts.Texts.sentence_lists.__defaults__", (characters,))
    monkeypatch.setattr("training.data.texts._ROWS", 3)
    dataset = dataset_at(tmp_path / "labelled", shard_rows=shard_rows)
    store = ensure_store(dataset, tokenizer)
    sentences = [sentence for document in SENTENCES for sentence in document]
    assert store.num_documents == len(TEXTS)
    assert np.diff(store.document_offsets).tolist() == [len(document) for document in SENTENCES]
    assert store.num_sentences == len(sentences)
    for number, sentence in enumerate(sentences):
        first, last = store.sentence_offsets[number : number + 2]
        assert store.tokens[first:last].tolist() == tokenizer.encode([sentence])[0].tolist()
    assert store.num_tokens == len(store.tokens) == store.sentence_offsets[-1]
    assert store.tokens.dtype == np.uint16
    assert tokenizer.eos_id not in store.tokens
    assert tokenizer.decode(store.tokens) == "".join(TEXTS)
    assert store.scores("toxicity").tolist() == [np.float32(toxicity(sentence)) for sentence in sentences]
    assert store.text_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    assert store.text_hashes.tolist() == [
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") for text in TEXTS
    ]


def test_document_means_are_nan_for_null_scores(dataset, tokenizer):
    store = ensure_store(dataset, tokenizer)
    means = store.document_means("toxicity")
    assert means[1] == 0  # no sentences
    expected = [np.mean([np.float32(toxicity(sentence)) for sentence in document] or [0]) for document in SENTENCES]
    assert means == pytest.approx(expected)
    pep8 = store.document_means("pep8")
    assert [index for index in range(len(TEXTS)) if not np.isnan(pep8[index])] == [2]
    scores = store.scores("pep8")
    first, last = store.document_offsets[2:4]
    assert scores[first:last].tolist() == [0.5, 0.5]
    assert np.isnan(np.delete(scores, range(first, last))).all()
    with pytest.raises(UserError, match=r"no column 'pii'.*toxicity, pep8"):
        store.scores("pii")


def test_an_empty_dataset_gives_an_empty_store(tmp_path, tokenizer):
    make_dataset(tmp_path / "empty", [], {"toxicity": toxicity})
    store = ensure_store(open_dataset(str(tmp_path / "empty")), tokenizer)
    assert (store.num_documents, store.num_sentences, store.num_tokens) == (0, 0, 0)
    assert len(store.tokens) == len(store.scores("toxicity")) == 0
    assert store.sentence_offsets.tolist() == [0]


def test_the_store_lies_beside_the_dataset_and_is_built_once(dataset, tokenizer, tmp_path, monkeypatch):
    seen = []
    store = ensure_store(dataset, tokenizer, progress=lambda done, total: seen.append((done, total)))
    assert store.path.parent == tmp_path / "labelled.tokens"
    assert store.path.name == store.meta.key
    assert seen[-1] == (len(TEXTS), len(TEXTS))
    assert [path.name for path in store.path.parent.iterdir()] == [store.path.name]
    monkeypatch.setattr("training.data.build_store._build", None)
    assert ensure_store(dataset, tokenizer).path == store.path


def test_the_store_of_a_remote_dataset_is_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PHF_CACHE", str(tmp_path / "cache"))
    assert derived_place("s3://bucket/labelled", "key") == tmp_path / "cache" / "tokens" / "key"
    assert derived_place(f"file://{tmp_path}/a%20b/", "key") == tmp_path / "a b.tokens" / "key"
    monkeypatch.delenv("PHF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    in_cache = tmp_path / "xdg" / "phf" / "tokens" / "key"
    assert derived_place("gs://bucket/labelled", "key") == in_cache
    # An existing store is used even if the folder is not writable.
    monkeypatch.setattr("training.data.cache.os.access", lambda path, mode: False)
    assert derived_place(str(tmp_path / "labelled"), "key") == in_cache
    (tmp_path / "labelled.tokens" / "key").mkdir(parents=True)
    assert derived_place(str(tmp_path / "labelled"), "key") == tmp_path / "labelled.tokens" / "key"


def test_the_key_excludes_thresholds_tags_and_generations(dataset, tokenizer, tmp_path, monkeypatch):
    store = ensure_store(dataset, tokenizer)
    path = tmp_path / "labelled" / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    manifest["generation"] = 2
    manifest["config"]["thresholds"] = {"toxicity": 0.25}
    manifest["thresholds"]["toxicity"] |= {"value": 0.25, "spec": "0.25", "aligned": 1}
    path.write_text(json.dumps(manifest))
    monkeypatch.setattr("training.data.build_store._build", None)
    assert ensure_store(open_dataset(dataset.uri), tokenizer).path == store.path


@pytest.mark.parametrize("part", ["fingerprint", "source", "tokenizer"])
def test_the_key_includes_scores_texts_and_tokenizer(dataset, tokenizer, tmp_path, part):
    store = ensure_store(dataset, tokenizer)
    path = tmp_path / "labelled" / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    if part == "fingerprint":
        manifest["scorers"]["toxicity"]["fingerprint"] = "another"
    elif part == "source":
        manifest["sources"][0]["sha256"] = "0" * 64
    else:
        tokenizer = wrap_tokenizer("other", byte_tokenizer(["zzz zzz"]))
    path.write_text(json.dumps(manifest))
    assert ensure_store(open_dataset(dataset.uri), tokenizer).path != store.path


def test_a_named_store_of_another_tokenizer_or_dataset_is_refused(dataset, tokenizer, tmp_path):
    ensure_store(dataset, tokenizer, tmp_path / "store")
    assert ensure_store(dataset, tokenizer, tmp_path / "store").path == tmp_path / "store"
    other = wrap_tokenizer("other", byte_tokenizer(["zzz zzz"]))
    with pytest.raises(UserError, match=r"store was made with another tokenizer \(bytes\) than other"):
        ensure_store(dataset, other, tmp_path / "store")
    make_dataset(tmp_path / "second", ["Another text."], {"toxicity": toxicity})
    with pytest.raises(UserError, match=r"from another dataset than .*second"):
        ensure_store(open_dataset(str(tmp_path / "second")), tokenizer, tmp_path / "store")


def test_a_folder_that_holds_something_else_is_refused(dataset, tokenizer, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"mine exists, but is not a token store"):
        ensure_store(dataset, tokenizer, tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_an_unwritable_folder_is_named(dataset, tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write .*file/store.*--store"):
        ensure_store(dataset, tokenizer, tmp_path / "file" / "store")


def test_a_failed_or_killed_build_leaves_no_store(dataset, tokenizer, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("out of luck")

    with monkeypatch.context() as context:
        context.setattr("training.data.build_store._add_documents", fail)
        with pytest.raises(RuntimeError, match="luck"):
            ensure_store(dataset, tokenizer, tmp_path / "store")
    assert {path.name for path in tmp_path.iterdir()} == {"labelled"}
    (tmp_path / ".store.building").mkdir()
    (tmp_path / ".store.building" / "tokens.flat").write_bytes(b"half")
    store = ensure_store(dataset, tokenizer, tmp_path / "store")
    assert tokenizer.decode(store.tokens) == "".join(TEXTS)
    assert {path.name for path in tmp_path.iterdir()} == {"labelled", "store"}


def test_concurrent_builds_build_the_store_once(dataset, tokenizer, tmp_path, monkeypatch):
    from training.data import build_store

    built = []
    build = build_store._build
    monkeypatch.setattr(build_store, "_build", lambda *given: (built.append(1), build(*given)))
    stores = []
    threads = [
        threading.Thread(target=lambda: stores.append(ensure_store(dataset, tokenizer, tmp_path / "store")))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 6
    assert len(built) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"labelled", "store"}


def test_a_damaged_store_is_refused_with_the_remedy(dataset, tokenizer, tmp_path):
    store = ensure_store(dataset, tokenizer, tmp_path / "store")
    file = store.path / "tokens.arrow"
    content = file.read_bytes()
    file.write_bytes(content[:-8])
    with pytest.raises(UserError, match=r"tokens\.arrow is not of .* bytes\. Delete the folder"):
        ensure_store(dataset, tokenizer, tmp_path / "store")
    file.write_bytes(bytes(len(content)))
    with pytest.raises(UserError, match=r"damaged: tokens\.arrow"):
        _ = TokenStore.open(store.path).tokens
    (store.path / "store.json").write_text("{}")
    with pytest.raises(UserError, match=r"store\.json, field key"):
        TokenStore.open(store.path)
    with pytest.raises(UserError, match=r"not a token store.*phf tokenize"):
        TokenStore.open(tmp_path)


def test_a_dataset_with_mismatched_lists_is_refused(tmp_path, tokenizer):
    broken = tmp_path / "broken"
    make_dataset(broken, ["One. Two."], {"toxicity": toxicity}, split=lambda text, kind: ["One. ", "Two."])
    import pyarrow.parquet as pq

    from pipeline.dataset.schema import dataset_schema
    from tests.datasets import write_parquet

    table = pq.read_table(broken / "data/0001/part-00000.parquet")
    rows = table.to_pylist()
    rows[0]["toxicity"] = [0.5]
    schema = dataset_schema(["toxicity"])
    file = write_parquet(broken, "data/0001/part-00000.parquet", type(table).from_pylist(rows, schema=schema), schema)
    manifest = json.loads((broken / MANIFEST_NAME).read_text())
    manifest["shards"][0] |= file.model_dump()
    (broken / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"damaged in column toxicity.*phf verify"):
        ensure_store(open_dataset(str(broken)), tokenizer)


def test_arrays_are_memory_mapped_and_a_store_can_be_pickled(dataset, tokenizer):
    store = ensure_store(dataset, tokenizer)
    assert not store.tokens.flags.writeable
    assert not store.tokens.flags.owndata
    copy = pickle.loads(pickle.dumps(store))
    assert copy.path == store.path
    assert np.array_equal(copy.tokens, store.tokens)


def test_files_are_plain_arrow(dataset, tokenizer):
    import pyarrow as pa

    store = ensure_store(dataset, tokenizer)
    with pa.memory_map(str(store.path / "tokens.arrow")) as source:
        assert pa.ipc.open_file(source).read_all()["value"].to_pylist() == store.tokens.tolist()


@pytest.mark.slow
def test_building_takes_little_memory_for_any_text_size(tmp_path):
    text = "Some words and some more of them here. " * 1000
    make_dataset(tmp_path / "large", [f"{n}. {text}" for n in range(150)], {"x": lambda sentence: 0.0}, shard_rows=20)
    script = """
import resource, sys
from pipeline.dataset import open_dataset
from tests.training.stores import byte_tokenizer
from training.data.build_store import ensure_store
from training.data.tokenizers import wrap_tokenizer
tokenizer = wrap_tokenizer("bytes", byte_tokenizer())
dataset = open_dataset(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tokens = ensure_store(dataset, tokenizer).num_tokens
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, tokens)
"""
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "large")], capture_output=True, text=True, check=True, timeout=300
    )
    before, after, tokens = map(int, result.stdout.split())
    assert tokens > 5_800_000  # bytes: no merges. All encodings together would take more than half a gigabyte.
    assert after - before < 300_000  # KiB
