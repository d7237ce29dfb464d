"""`phf select`: the best-scored rewrite of a text that is close enough to it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sacrebleu.metrics.chrf import CHRF
from typer.testing import CliRunner

from phf import app
from pipeline.corpus.inputs import find_sources
from pipeline.corpus.streams import open_content
from pipeline.labelling.chrf import chrf
from scorers import registry
from scorers.contract import Document, Execution, ScoringError, SemanticOptions
from tests.pipeline.corpora import write_lines, write_records

FULL = "The shop in our street is closed on Sunday!!"
GOOD = "The shop in our street is closed on Sunday."
LOUD = "The shop in our street is closed on Sunday!"


class LoudScorer:
    """Exclamation marks; refuses `REFUSE`, and does not apply to `SKIP`."""

    Options = SemanticOptions
    main_option: ClassVar[str | None] = None
    runs_on_gpu: ClassVar[bool] = False

    def __init__(self, name: str, options: SemanticOptions, execution: Execution) -> None:
        self.name, self.fingerprint = name, "loud"

    def applies(self, document: Document) -> bool:
        return "SKIP" not in document.text

    def score(self, documents: Sequence[Document]) -> list[NDArray[np.float32] | ScoringError]:
        return [
            ScoringError("deadline")
            if "REFUSE" in each.text
            else np.array([sentence.count("!") for sentence in each.sentences()], np.float32)
            for each in documents
        ]


@pytest.fixture(autouse=True)
def loud(monkeypatch, tmp_path):
    monkeypatch.setitem(registry.KINDS, "loud", f"{__name__}:LoudScorer")
    monkeypatch.chdir(tmp_path)


def select(*arguments: Any, scorer: str = "loud") -> Any:
    options = ["--group", "g", "--scorer", scorer, "--output", "out.jsonl", "--json"]
    return CliRunner().invoke(app, ["select", *map(str, arguments), *options])


def rows_of(name: str = "out.jsonl") -> list[dict[str, Any]]:
    (source,) = find_sources([name])
    content = open_content(source).read(1 << 20)
    return [json.loads(line) for line in content.splitlines()]


def candidates(*texts: str | None, group: Any = "a", before: Any = FULL) -> list[dict[str, Any]]:
    return [{"g": group, "before": before, "text": text} for text in texts]


def chosen_of(records: list[dict[str, Any]], *options: Any, status: int = 0) -> tuple[dict[str, Any], list[Any]]:
    write_records(Path("in.jsonl"), *records)
    done = select("in.jsonl", "--original", "before", *options)
    assert done.exit_code == status, done.output
    return json.loads(done.stdout), rows_of()


def test_the_lowest_score_that_is_similar_enough_is_chosen():
    records = [*candidates(LOUD, GOOD, "Closed."), *candidates("Nothing alike", group=7), *candidates(LOUD, group="c")]
    facts, rows = chosen_of([records[each] for each in (3, 0, 4, 1, 2)])
    assert [(each["group"], each["text"], each["candidates"]) for each in rows] == [("a", GOOD, 3), ("c", LOUD, 1)]
    assert rows[0]["scores"] == {"loud": 0.0}
    assert rows[0]["original_scores"] == {"loud": 2.0}
    assert rows[0]["similarity"] == chrf(GOOD, FULL)
    assert (facts["groups"], facts["chosen"], facts["left_out_groups"], facts["too_far"]) == (3, 2, 1, 2)
    assert facts["mean_scores"] == {"chosen": {"loud": 0.5}, "original": {"loud": 2.0}}


def test_equal_scores_are_decided_by_similarity_and_then_by_order():
    nearer = GOOD.replace("our", "the")
    _, rows = chosen_of([*candidates("The shop is closed.", nearer), *candidates(nearer, "ours", group="b")])
    assert [each["text"] for each in rows] == [nearer, nearer]
    assert chrf("ab c", FULL) == chrf("a bc", FULL)
    Path("out.jsonl").unlink()
    _, rows = chosen_of(candidates("ab c", "a bc"), "--min-similarity", 0)
    assert rows[0]["text"] == "ab c"


def test_the_original_is_kept_where_asked_for():
    facts, rows = chosen_of(candidates("Nothing alike"), "--keep-original")
    assert rows == [
        {
            "group": "a",
            "text": FULL,
            "chosen": "original",
            "candidates": 1,
            "scores": {"loud": 2.0},
            "original_scores": {"loud": 2.0},
            "similarity": 1.0,
        }
    ]
    assert (facts["chosen"], facts["kept_original"], facts["left_out_groups"]) == (0, 1, 0)


def test_what_cannot_be_scored_or_compared_is_counted_and_not_chosen():
    records = [
        *candidates("REFUSE " + GOOD, "SKIP " + GOOD, "", " \n", None, LOUD),
        *candidates(GOOD, before="REFUSE " + FULL, group="b"),
        *candidates(GOOD, before=3, group="c"),
        *candidates(GOOD, before="Another one."),
        *candidates(GOOD, group=None),
        *candidates(GOOD, group=["a"]),
        *candidates(GOOD, group="\ud800"),
    ]
    facts, rows = chosen_of(records, "--keep-original", status=3)
    assert [each["text"] for each in rows] == [LOUD]
    assert facts["quarantined"] == {
        "deadline": 2,
        "empty": 2,
        "group-not-a-name": 1,
        "lone-surrogate": 1,
        "no-group": 1,
        "no-original": 1,
        "no-text": 1,
        "not-applicable": 1,
        "other-original": 1,
    }
    assert facts["left_out_groups"] == 1
    Path("out.jsonl").unlink()
    assert chosen_of(records, "--max-quarantined", "99%")[1] == rows


def test_messages_hold_no_text_and_a_cut_input_is_no_success():
    lines = b"".join(json.dumps(each).encode() + b"\n" for each in candidates(LOUD, "REFUSE SECRET", GOOD))
    path = write_lines(Path("in.jsonl.gz"), lines)
    path.write_bytes(path.read_bytes()[:-9])
    done = select(path, "--original", "before", "--max-quarantined", "99%")
    assert done.exit_code == 3
    assert "(deadline)" in done.stderr
    assert "SECRET" not in done.output
    assert json.loads(done.stdout)["quarantined"] == {"deadline": 1, "truncated-source": 1}
    assert [each["text"] for each in rows_of()] == [GOOD]


def test_without_an_original_a_column_of_parquet_decides_and_the_choice_is_a_corpus():
    table = pa.table({"g": [1, 2, 1], "text": ["Bad. One.", "Two.", "Good. Two."], "score": [0.5, 0.75, 0.25]})
    pq.write_table(table, "in.parquet")
    done = select("in.parquet", scorer="reward=column:score")
    assert done.exit_code == 0, done.output
    assert [each["text"] for each in rows_of()] == ["Good. Two.", "Two."]
    assert "similarity" not in rows_of()[0]
    shown = CliRunner().invoke(app, ["preview", "out.jsonl", "--id-field", "group", "--scorer", "loud", "--json"])
    assert [each["doc_id"] for each in json.loads(shown.stdout)["documents"]] == ["1", "2"]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_the_suffix_compresses(suffix):
    write_records(Path("in.jsonl"), *candidates(GOOD))
    options = ["in.jsonl", "--group", "g", "--scorer", "loud", "--output", f"out{suffix}"]
    done = CliRunner().invoke(app, ["select", *options])
    assert done.exit_code == 0, done.output
    assert "holds 1 text" in done.stdout
    assert rows_of(f"out{suffix}")[0]["text"] == GOOD
    before = Path(f"out{suffix}").read_bytes()
    again = CliRunner().invoke(app, ["select", *options])
    assert (again.exit_code, Path(f"out{suffix}").read_bytes()) == (2, before)
    assert "exists already" in again.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--group", "source"], "No record has the field 'source' of --group; the first ones have: 'g', 'before'"),
        (["--group", "g", "--original", "old"], "No record has the field 'old' of --original"),
        (["--group", "g", "--keep-original"], "need --original FIELD"),
        (["--group", "g", "--min-similarity", "0.5"], "need --original FIELD"),
        (["--group", "g", "--output", "out.csv"], "give the output a suffix of .jsonl, .jsonl.gz, .jsonl.zst"),
        ([], "needs --group FIELD"),
    ],
)
def test_bad_usage_is_refused_with_one_message_and_nothing_is_written(options, message):
    write_records(Path("in.jsonl"), *candidates(GOOD))
    done = CliRunner().invoke(app, ["select", "in.jsonl", "--scorer", "loud", "--output", "out.jsonl", *options])
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert [each.name for each in Path().iterdir()] == ["in.jsonl"]


texts = st.text(alphabet="abc \n\u0301é", max_size=30)


@given(texts, texts)
def test_chrf_is_that_of_sacrebleu(one, other):
    assert chrf(one, other) == pytest.approx(CHRF().sentence_score(one, [other]).score / 100, abs=1e-12)
