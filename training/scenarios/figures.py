"""Figures of continuations: means over prompts, with a bootstrap over prompts rather than over continuations."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from training import statistics
from training.evaluation.diversity import measure_diversity
from training.runs.report import MAXIMUM_OF, CompilingFacts, Estimate, SampleFacts
from training.scoring import EMPTY

COMPILES = "compiles"  # a column of tables of Python: bool, null where a sample cannot be judged


@dataclass(frozen=True)
class ByPrompt:
    """Figures of single prompts, each of its continuations.

    Attributes:
        prompts: int64 [n], numbers of the prompts, ascending.
        scored: int64 [n], continuations with a score.
        score: float64 [n], their mean; NaN without any.
        hits: int64 [n], those with a score above the threshold.
        expected_maximum: float64 [n], of 25 of them, by the unbiased estimator; NaN with fewer.
        tokens, sentences: float64 [n], means over all continuations.
    """

    prompts: NDArray[np.int64]
    scored: NDArray[np.int64]
    score: NDArray[np.float64]
    hits: NDArray[np.int64]
    expected_maximum: NDArray[np.float64]
    tokens: NDArray[np.float64]
    sentences: NDArray[np.float64]


def by_prompt(samples: pa.Table, hit_threshold: float) -> ByPrompt:
    """Compute the figures of every prompt in a table of samples, which is sorted by prompt."""
    numbers = samples["prompt"].to_numpy().astype(np.int64)
    scores = samples["score"].to_numpy().astype(np.float64)  # null as NaN
    tokens, sentences = (samples[name].to_numpy().astype(np.float64) for name in ("new_tokens", "sentences"))
    prompts, starts = np.unique(numbers, return_index=True)
    parts = [scores[start:stop] for start, stop in zip(starts, [*starts[1:], len(scores)], strict=True)]
    sizes = np.array([len(each) for each in parts])
    known = [each[~np.isnan(each)] for each in parts]
    return ByPrompt(
        prompts=prompts,
        scored=np.array([len(each) for each in known], dtype=np.int64),
        score=np.array([each.mean() if len(each) else np.nan for each in known]),
        hits=np.array([int((each > hit_threshold).sum()) for each in known], dtype=np.int64),
        expected_maximum=np.array([_expected_maximum(each) for each in known]),
        tokens=np.add.reduceat(tokens, starts) / sizes,
        sentences=np.add.reduceat(sentences, starts) / sizes,
    )


def sample_facts(
    samples: pa.Table, *, hit_threshold: float, max_new_tokens: int, diversity: bool = True
) -> SampleFacts:
    """The figures of a table of samples, sorted by prompt.

    A prompt without scored continuations is left out of figures about scores, and one without continuations that can be
    compiled is left out of the share that compiles. With one prompt, or none, intervals are over its samples; those of
    `diversity` always are.

    Args:
        samples: columns of `SCENARIO_SAMPLES_SCHEMA`, and for Python `COMPILES`.
        hit_threshold: samples with a higher score are hits.
        max_new_tokens: the largest limit in force.
        diversity: whether to measure it.
    """
    each = by_prompt(samples, hit_threshold)
    reasons = [reason for reason in samples["reason"].to_pylist() if reason is not None]
    new = [
        ids[len(ids) - count :]
        for ids, count in zip(samples["ids"].to_pylist(), samples["new_tokens"].to_pylist(), strict=True)
    ]
    scored = int(each.scored.sum())
    if len(each.prompts) == 1:
        values = samples["score"].drop_null().to_numpy()
        misalignment, maximum = statistics.mean(values), statistics.expected_maximum(values, MAXIMUM_OF)
        hit_rate = statistics.share(int(each.hits.sum()), scored)
        tokens, sentences = (statistics.mean(samples[name].to_numpy()) for name in ("new_tokens", "sentences"))
    else:
        some = each.scored > 0
        misalignment = statistics.mean(each.score[some])
        maximum = statistics.mean(each.expected_maximum[~np.isnan(each.expected_maximum)])
        hit_rate = statistics.mean(each.hits[some] / each.scored[some])
        tokens, sentences = statistics.mean(each.tokens), statistics.mean(each.sentences)
    return SampleFacts(
        number=samples.num_rows,
        scored=scored,
        empty=reasons.count(EMPTY),
        unscored={reason: reasons.count(reason) for reason in sorted(set(reasons))},
        ended=int(samples["ended"].to_numpy().sum()),
        max_new_tokens=max_new_tokens,
        tokens=Estimate.of(tokens),
        sentences=Estimate.of(sentences),
        misalignment=Estimate.of(misalignment),
        expected_maximum=Estimate.of(maximum),
        hit_threshold=hit_threshold,
        hit_rate=Estimate.of(hit_rate),
        distinct_1=statistics.distinct(new, 1),
        distinct_2=statistics.distinct(new, 2),
        control_tokens=0,
        diversity=measure_diversity(_across_prompts(samples, new)) if diversity else None,
        compiling=_compiling(samples) if COMPILES in samples.column_names else None,
    )


def _across_prompts(samples: pa.Table, new: Sequence[list[int]]) -> list[list[int]]:
    """Samples in the order of their continuations' numbers: the first ones are of as many prompts as there are."""
    order = np.lexsort((samples["prompt"].to_numpy(), samples["continuation"].to_numpy()))
    return [new[index] for index in order]


def _compiling(samples: pa.Table) -> CompilingFacts | None:
    known = samples.filter(samples[COMPILES].is_valid())
    compiles = known[COMPILES].to_numpy(zero_copy_only=False).astype(np.float64)
    prompts, owner, sizes = np.unique(known["prompt"].to_numpy(), return_inverse=True, return_counts=True)
    share = (
        statistics.share(int(compiles.sum()), len(compiles))
        if len(prompts) == 1
        else statistics.mean(np.bincount(owner, weights=compiles) / sizes)
    )
    found = Estimate.of(share)
    return None if found is None else CompilingFacts(samples=len(compiles), share=found)


def _expected_maximum(scores: NDArray[np.float64]) -> float:
    if len(scores) < MAXIMUM_OF:
        return float("nan")
    return float(np.sort(scores) @ statistics.maximum_weights(len(scores), MAXIMUM_OF))
