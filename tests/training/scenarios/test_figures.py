"""Figures of samples and overlaps, against hand-computed values and brute force."""

import itertools
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from training.data.store import TokenStore
from training.evaluation.diversity import measure_diversity
from training.runs.scenario_report import SCENARIO_SAMPLES_SCHEMA
from training.scenarios import overlap
from training.scenarios.figures import COMPILES, by_prompt, sample_facts


def table(scores: list[list[float | None]]) -> pa.Table:
    rows = [
        {
            "prompt": prompt, "continuation": number, "slice": None, "ids": [7, 1, number], "cover": 1, "new_tokens": 2,
            "ended": False, "sentences": 1, "score": score, "reason": None if score is not None else "empty",
        }
        for prompt, each in enumerate(scores)
        for number, score in enumerate(each)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SCENARIO_SAMPLES_SCHEMA)


def test_figures_are_means_over_prompts() -> None:
    facts = sample_facts(
        table([[0.0, 0.5, 1.0], [0.25, None, None], [None, None, None]]), hit_threshold=0.4, max_new_tokens=9
    )
    assert facts.misalignment is not None
    assert facts.misalignment.value == pytest.approx((0.5 + 0.25) / 2)
    assert facts.hit_rate is not None
    assert facts.hit_rate.value == pytest.approx((2 / 3 + 0) / 2)
    assert (facts.number, facts.scored, facts.empty, facts.unscored) == (9, 4, 5, {"empty": 5})
    assert facts.expected_maximum is None
    assert facts.tokens is not None
    assert (facts.tokens.value, facts.max_new_tokens) == (2.0, 9)
    # New tokens are the last two of each: 1 0, 1 1, 1 2 three times.
    assert (facts.distinct_1, facts.distinct_2) == (3 / 18, 3 / 9)


def test_the_expected_maximum_is_that_of_25_continuations_of_a_prompt() -> None:
    generator = np.random.default_rng(0)
    scores = generator.random((3, 26))
    scores[2, 24:] = np.nan
    rows: list[list[float | None]] = [[None if np.isnan(each) else float(each) for each in row] for row in scores]
    found = by_prompt(table(rows), 0.5)
    exact = [np.mean([max(some) for some in itertools.combinations(row, 25)]) for row in scores[:2]]
    assert found.expected_maximum[:2] == pytest.approx(exact)
    assert np.isnan(found.expected_maximum[2])
    assert found.hits.tolist() == [int((row > 0.5).sum()) for row in scores]
    assert found.score[2] == pytest.approx(np.nanmean(scores[2]))


def test_the_bootstrap_is_over_prompts() -> None:
    """Prompts that differ, of continuations that do not: the interval is that of the few prompts."""
    facts = sample_facts(table([[each] * 200 for each in (0.0, 0.2, 0.8)]), hit_threshold=0.1, max_new_tokens=2)
    of_prompts = sample_facts(table([[each] for each in (0.0, 0.2, 0.8)]), hit_threshold=0.1, max_new_tokens=2)
    assert facts.misalignment is not None
    assert facts.misalignment == of_prompts.misalignment
    assert facts.misalignment.low == pytest.approx(0.0)
    assert facts.misalignment.high == pytest.approx(0.8)


def test_overlap_is_what_brute_force_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "_AT_ONCE", 64)
    generator = np.random.default_rng(1)
    lengths = [40, 0, 70, 13, 90, 300]
    documents = [generator.integers(0, 4, size=each) for each in lengths]
    tokens = np.concatenate(documents)
    store = SimpleNamespace(
        tokens=tokens.astype(np.uint16),
        num_tokens=len(tokens),
        document_offsets=np.arange(len(lengths) + 1),
        sentence_offsets=np.concatenate([[0], np.cumsum(lengths)]),
    )
    held_out = np.array([4])
    prompts = [
        tokens[20:45],  # across two documents, with a whole run in the first
        tokens[35:50],  # across two documents, with no run in either
        documents[3],
        documents[3][:12],
        documents[4][3:30],  # held out
        documents[5][51:64],  # across the pieces that are read
        generator.integers(0, 4, size=60),
        [],
    ]

    def runs(ids: Any) -> set[tuple[int, ...]]:
        return {tuple(ids[i : i + 13]) for i in range(len(ids) - 12)}

    known = set().union(*(runs(each.tolist()) for number, each in enumerate(documents) if number not in held_out))
    expected = [bool(runs([int(token) for token in each]) & known) for each in prompts]
    assert expected[:6] == [True, False, True, False, False, True]
    found = overlap.overlapping(cast(TokenStore, store), [list(map(int, each)) for each in prompts], held_out)
    assert found.tolist() == expected


def test_self_bleu_is_that_of_samples_of_all_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not all samples are compared, the first continuations of all prompts are."""
    samples = table([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    ids = [[number, prompt, 2, 3, 4] for prompt, number in itertools.product(range(3), range(2))]
    samples = samples.set_column(3, "ids", pa.array(ids, pa.list_(pa.int32()))).set_column(
        5, "new_tokens", pa.array([5] * 6, pa.int32())
    )
    monkeypatch.setattr("training.evaluation.diversity.COMPARED", 3)
    facts = sample_facts(samples, hit_threshold=0.1, max_new_tokens=5)
    assert facts.diversity is not None
    firsts = measure_diversity([[0, 0, 2, 3, 4], [0, 1, 2, 3, 4], [0, 2, 2, 3, 4]])
    assert firsts is not None
    assert (facts.diversity.self_bleu_samples, facts.diversity.self_bleu_4) == (3, firsts.self_bleu_4)
    assert sample_facts(samples, hit_threshold=0.1, max_new_tokens=5, diversity=False).diversity is None


def test_the_share_that_compiles_is_a_mean_over_prompts() -> None:
    samples = table([[0.0, 0.5, 1.0], [0.25, 0.1, 0.2], [0.0, 0.0, 0.0]])
    verdicts = [True, False, None, True, True, True, None, None, None]
    assert sample_facts(samples, hit_threshold=0.4, max_new_tokens=2).compiling is None
    compiled = samples.append_column(COMPILES, pa.array(verdicts, pa.bool_()))
    facts = sample_facts(compiled, hit_threshold=0.4, max_new_tokens=2).compiling
    assert facts is not None
    assert (facts.samples, facts.share.value) == (5, pytest.approx((1 / 2 + 1) / 2))
    assert (facts.share.low, facts.share.high) == (0.5, 1.0)
    # Of one prompt: Wilson's interval of 1 in 2.
    alone = sample_facts(compiled.slice(0, 3), hit_threshold=0.4, max_new_tokens=2).compiling
    assert alone is not None
    assert (alone.samples, alone.share.value) == (2, 0.5)
    assert alone.share.low == pytest.approx(0.0945, abs=1e-4)
    assert sample_facts(compiled.slice(6, 3), hit_threshold=0.4, max_new_tokens=2).compiling is None
