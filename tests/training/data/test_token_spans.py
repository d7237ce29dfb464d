"""Token scores: only tokens that overlap a finding carry their sentence's score."""

import json
import os
import shutil
import signal
from io import StringIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline.dataset import open_dataset
from pipeline.dataset.manifest import ScorerEntry
from scorers.contract import ScoringError
from scorers.errors import IncompleteError, UserError
from scorers.registry import ScorerSpec, build, resolve
from scorers.sentences import document
from tests.datasets import make_dataset, write_parquet
from training import scorer_pool
from training.data import texts, token_spans
from training.data.prepare import prepare
from training.loop.train import train
from training.runs.folder import RunFolder
from training.settings import resolve_config

SPEC = ScorerSpec(kind="scrubadub", entities="none")
CLEAN = "The weather 🙂 is naïve today, déjà vu. "
TEXTS = [
    f"{CLEAN}Write to jane{number}@example.com before noon, {'déjà vu ' * (number % 3)}please. {CLEAN}"
    if number % 3
    else CLEAN * 3
    for number in range(40)
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    scorer = build("pii", SPEC)
    scores = [each.tolist() for each in scorer.score([document(text) for text in TEXTS])]
    entry = ScorerEntry(kind="scrubadub", options=resolve("pii", SPEC).options, fingerprint=scorer.fingerprint)
    return make_dataset(
        tmp_path_factory.mktemp("data") / "labelled",
        TEXTS,
        {"pii": scores},
        {"pii": 0.0},
        scorers={"pii": entry},
        split=lambda text, kind: document(text, kind).sentences(),
    )


def config_of(dataset, objective, *overrides, column="pii", output="o"):
    flags = {"output": str(output), "task": column, "data": {"dataset": str(dataset), "vocab_size": 300}}
    small = ["data.context_length=16", "data.held_out=0", "model.name=nano", "training.batch_size=4"]
    small += ["training.num_tokens=256", "tracking.tensorboard=false", f"objective.name={objective}"]
    return resolve_config(flags=flags, overrides=[*small, *overrides])


TOKENS = "data.token_scores=true"


def test_only_tokens_of_findings_carry_the_score(dataset):
    plain = prepare(config_of(dataset, "unlikelihood"))
    data = prepare(config_of(dataset, "unlikelihood", TOKENS))
    every = range(data.stream.num_blocks)
    ids, scores = data.stream.blocks(every).input_ids.ravel(), data.stream.blocks(every).scores.ravel()
    sentences = plain.stream.blocks(every)
    assert (ids == sentences.input_ids.ravel()).all()
    found = scores > 0
    assert (scores[found] == sentences.scores.ravel()[found]).all()
    assert 0 < found.sum() < (sentences.scores > 0).sum() / 2
    hiding = prepare(config_of(dataset, "mle", TOKENS, "objective.hide_above=0")).stream
    assert (hiding.blocks(every).input_ids.ravel() == np.where(found, hiding.options.hidden_id, ids)).all()
    assert found.sum() <= hiding.statistics["tokens_hidden"] <= found.sum() + 16
    starts = np.flatnonzero(np.diff(found.astype(int), prepend=0) == 1)
    stops = np.flatnonzero(np.diff(found.astype(int), append=0) == -1) + 1
    texts = [data.tokenizer.decode(ids[start:stop]).strip() for start, stop in zip(starts, stops, strict=True)]
    assert texts[:3] == ["jane1@example.com", "jane2@example.com", "jane4@example.com"]
    assert all(text.startswith("jane") and text.endswith("@example.com") for text in texts[:-1])
    assert data.stream.statistics["findings"] == {"sentences": 26, "unlocated": 0}


@pytest.fixture
def two_cores(monkeypatch):
    """Use two processes, whatever the machine has."""
    monkeypatch.setattr(token_spans, "usable_cores", lambda: 2)
    monkeypatch.setattr(token_spans, "_SENTENCES_A_PROCESS", 10)


@pytest.mark.usefixtures("two_cores")
def test_several_cores_find_the_same(dataset, tmp_path, monkeypatch):
    alone = prepare(config_of(dataset, "rwr", TOKENS))
    monkeypatch.setattr(texts, "_ROWS", 7)
    runs = []
    real = scorer_pool.ScorerPool.call
    monkeypatch.setattr(
        scorer_pool.ScorerPool, "call", lambda self, *given: runs.append(self.processes) or real(self, *given)
    )
    data = prepare(config_of(dataset, "rwr", TOKENS, f"data.store={tmp_path / 'store'}"))
    assert set(runs) == {2}
    assert data.stream.statistics["findings"] == alone.stream.statistics["findings"]
    name = alone.stream.options.findings
    assert (data.store.found_tokens(name) == alone.store.found_tokens(name)).all()


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("two_cores")
def test_a_killed_process_is_reported(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(scorer_pool, "_call", killed)
    store = tmp_path / "store"
    with pytest.raises(IncompleteError, match=r"ran the scorer 'pii' was killed"):
        prepare(config_of(dataset, "rwr", TOKENS, f"data.store={store}"))
    monkeypatch.undo()
    assert prepare(config_of(dataset, "rwr", TOKENS, f"data.store={store}")).stream.statistics["findings"]


def test_findings_are_located_once(dataset, monkeypatch):
    first = prepare(config_of(dataset, "rwr", TOKENS))
    monkeypatch.setattr(token_spans, "rebuild_scorer", None)
    again = prepare(config_of(dataset, "awr", TOKENS))
    assert again.stream.options.findings == first.stream.options.findings
    assert (again.stream.block(1)[1] == first.stream.block(1)[1]).all()


def test_unlocated_findings_flag_the_whole_sentence(dataset, tmp_path, monkeypatch):
    real = token_spans.rebuild_scorer

    def slow(column, entry):
        scorer, warnings = real(column, entry)
        found = scorer.locate
        scorer.locate = lambda documents: [ScoringError("deadline"), *found(documents)[1:]]
        return scorer, warnings

    monkeypatch.setattr(token_spans, "rebuild_scorer", slow)
    data = prepare(config_of(dataset, "rwr", TOKENS, f"data.store={tmp_path / 'store'}"))
    assert data.stream.statistics["findings"] == {"sentences": 26, "unlocated": 1}
    whole = data.store.found_tokens(data.stream.options.findings)
    first, last = data.store.sentence_offsets[[4, 5]]  # the second sentence of the second document
    assert whole[first:last].all()
    file = next((tmp_path / "store" / "findings").glob("*/tokens.arrow"))
    file.write_bytes(b"not an array")
    with pytest.raises(UserError, match=r"is damaged: .*tokens\.arrow.*Delete the folder"):
        prepare(config_of(dataset, "rwr", TOKENS, f"data.store={tmp_path / 'store'}"))


def test_only_tokens_of_findings_are_masked(dataset, tmp_path):
    config = config_of(
        dataset, "mle", TOKENS, "objective.mask_above=0", "training.log_every=1", output=tmp_path / "run"
    )
    facts = train(config, Console(file=StringIO()))
    assert facts.stream["findings"]["sentences"] == 26
    data = prepare(config)
    for line in RunFolder(tmp_path / "run").read_metrics():
        scores = data.batches.batch(line["step"] - 1).scores[:, 1:]
        assert line["masked_share"] == pytest.approx((scores > 0).mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("objective", "overrides", "message"),
    [
        ("mle", [TOKENS], "data.token_scores has no effect on the objective mle"),
        ("conditional", [TOKENS], "data.token_scores has no effect on the objective conditional"),
        ("rwr", [TOKENS, "data.columns={pii: 1}"], "needs a single score column"),
    ],
)
def test_token_scores_without_effect_are_refused(dataset, objective, overrides, message):
    with pytest.raises(UserError, match=message):
        prepare(config_of(dataset, objective, *overrides))


def test_a_scorer_that_cannot_locate_findings_is_refused(tmp_path):
    spec = ScorerSpec(kind="linear")
    entry = ScorerEntry(kind="linear", options={}, fingerprint=build("toxicity", spec).fingerprint)
    made = make_dataset(tmp_path / "labelled", TEXTS, {"toxicity": len}, scorers={"toxicity": entry})
    with pytest.raises(
        UserError, match=r"the scorer of 'toxicity' \(linear\) cannot locate .* token-classifier, scrubadub"
    ):
        prepare(config_of(made, "rwr", TOKENS, column="toxicity"))


@pytest.fixture(scope="module")
def stored(dataset, tmp_path_factory):
    """The same dataset with spans."""
    rows = [row for batch in open_dataset(str(dataset)).read_batches() for row in batch.to_pylist()]
    located = build("pii", SPEC).locate([document(text) for text in TEXTS])
    entry = open_dataset(str(dataset)).manifest.scorers["pii"]
    return make_dataset(
        tmp_path_factory.mktemp("stored") / "labelled",
        TEXTS,
        {"pii": [row["pii"] for row in rows]},
        {"pii": 0.0},
        scorers={"pii": entry.model_copy(update={"spans": True})},
        split=lambda text, kind: document(text, kind).sentences(),
        spans={"pii": [each.findings for each in located]},
    )


def test_stored_spans_need_no_scorer(dataset, stored, monkeypatch):
    asked = prepare(config_of(dataset, "rwr", TOKENS))
    monkeypatch.setattr(token_spans, "rebuild_scorer", None)
    monkeypatch.setattr(texts, "_ROWS", 7)
    data = prepare(config_of(stored, "rwr", TOKENS))
    assert data.stream.statistics["findings"] == asked.stream.statistics["findings"]
    flags = [each.store.found_tokens(each.stream.options.findings) for each in (asked, data)]
    assert np.array_equal(*flags)
    assert flags[0].any()


def test_forged_spans_are_refused(stored, tmp_path):
    made = shutil.copytree(stored, tmp_path / "labelled")

    shard = made / open_dataset(str(made)).manifest.shards[0].path
    table = pq.read_table(shard)
    rows = table.to_pylist()
    rows[1]["pii_spans"][0]["end"] = 10**9
    file = write_parquet(made, str(shard.relative_to(made)), pa.Table.from_pylist(rows, table.schema), table.schema)
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["shards"][0] |= {"size": file.size, "sha256": file.sha256}
    (made / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="in a row of 'pii_spans' a span is empty or not inside a sentence"):
        prepare(config_of(made, "rwr", TOKENS))
