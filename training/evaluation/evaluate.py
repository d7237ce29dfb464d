"""Evaluate a model: draw samples, score them, and measure how well it predicts held-out text.

`phf evaluate` uses it for finished runs, and the trainer for the model in training.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorers.amounts import format_count
from scorers.fingerprint import library_versions
from training import statistics
from training.evaluation.by_field import figures_by_field
from training.evaluation.compiling import measure_compiling
from training.evaluation.diversity import measure_diversity
from training.evaluation.held_out_loss import HeldOutLoss, all_aligned, held_out_loss
from training.evaluation.prepare import EvaluationSetup, HeldOutChoice
from training.evaluation.recommended_guidance import repeats_itself
from training.model.sampling import Guidance, Samples, sample
from training.runs.report import (
    MAXIMUM_OF,
    Estimate,
    EvaluationReport,
    FieldFacts,
    GuidedFacts,
    HeldOutFacts,
    LeakageFacts,
    SampleFacts,
    ScorerFacts,
)
from training.scoring import EMPTY, NO_WHOLE_LINE, ScoredSamples, score_samples

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Measured:
    """The measurements of a model that do not depend on the judge of its samples.

    Attributes:
        samples: samples drawn with control tokens banned.
        guided: the same with guidance; None without.
        leakage: None for a model without tags.
        held_out, loss, held_out_facts: the predicted documents, their losses, and the figures; None if there were none.
        device: torch device.
    """

    samples: Samples
    guided: Samples | None
    leakage: LeakageFacts | None
    held_out: HeldOutChoice | None
    loss: HeldOutLoss | None
    held_out_facts: HeldOutFacts | None
    device: str


@dataclass(frozen=True)
class Evaluation:
    """A report and the data that it was computed from.

    Attributes:
        report: the figures.
        samples, scored: the samples and their scores.
        guided, guided_scored: the same with guidance; None without.
        held_out, loss: the predicted documents and their losses; None if there were none.
    """

    report: EvaluationReport
    samples: Samples
    scored: ScoredSamples
    held_out: HeldOutChoice | None
    loss: HeldOutLoss | None
    guided: Samples | None = None
    guided_scored: ScoredSamples | None = None


def evaluate_model(model: Any, setup: EvaluationSetup, *, step: int, progress: Progress | None = None) -> Evaluation:
    """Sample, score and measure one model.

    The mode of the model and the global random state are preserved, so that training is not affected.

    Args:
        model: a Hugging Face causal language model, complete on one device (gathered, under ZeRO 3).
        setup: see `prepare_evaluation`.
        step: optimiser steps that the model was trained for.
        progress: called with a stage (`samples`, `guided samples`, `leakage`, `held-out text`, `scores`), the amount
            done, and the total.
    """
    began = time.perf_counter()
    return judge(_measure(model, setup, progress or _silence), setup, step=step, began=began, progress=progress)


def judge(
    measured: Measured,
    setup: EvaluationSetup,
    *,
    step: int,
    began: float | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score samples that were already drawn, and report.

    Args:
        measured: the measurements of the model.
        setup: has the scorer that judges.
        step: optimiser steps that the model was trained for.
        began: `time.perf_counter()` at the start of the evaluation; None for now.
        progress: as for `evaluate_model`.
    """
    began = time.perf_counter() if began is None else began
    progress = progress or _silence
    guidance, guided_scored, guided_facts = setup.guidance, None, None
    # Reused measurements may include guided samples that are not asked for now.
    samples, guided = measured.samples, None if guidance is None else measured.guided
    scored = score_drawn(samples, setup, progress)
    facts = sample_facts(samples, scored, setup)
    warnings = [*setup.warnings, *sample_warnings(facts, setup)]
    if guided is not None and guidance is not None:
        guided_scored = score_drawn(guided, setup, progress)
        under = sample_facts(guided, guided_scored, setup)
        guided_facts = GuidedFacts(scale=guidance.scale, away=list(guidance.away_ids), samples=under)
        known = set(warnings)
        warnings += [f"Guided: {each}" for each in sample_warnings(under, setup) if each not in known]
        warnings += _guidance_warnings(guidance.scale, facts, under)
    report = EvaluationReport(
        created_by=f"phf {library_versions('phf')['phf']}",
        objective=setup.objective,
        column=setup.column,
        kind=setup.kind,
        step=step,
        prompt=setup.prompt,
        config=setup.config,
        device=measured.device,
        seconds=round(time.perf_counter() - began, 3),
        scorer=ScorerFacts(entry=setup.scorer_entry, fingerprint=setup.scorer.fingerprint),
        samples=facts,
        guided=guided_facts,
        leakage=measured.leakage,
        held_out=measured.held_out_facts,
        by=_by_field(measured, setup),
        warnings=warnings,
        versions=library_versions("torch", "transformers", "tokenizers", "numpy"),
    )
    return Evaluation(report, samples, scored, measured.held_out, measured.loss, guided, guided_scored)


def _by_field(measured: Measured, setup: EvaluationSetup) -> FieldFacts | None:
    if setup.by is None or measured.held_out is None or measured.loss is None:
        return None
    values = setup.by.values(measured.held_out.indices)
    return figures_by_field(setup.by.name, values, measured.loss, measured.held_out.misalignment)


def _silence(stage: str, done: int, total: int) -> None:
    pass


def _measure(model: Any, setup: EvaluationSetup, progress: Progress) -> Measured:
    samples = draw_samples(
        model, setup, setup.config.num_samples, banned=setup.banned_ids, seed=setup.config.seed, progress=progress
    )
    guided = None
    if setup.guidance is not None:
        guided = draw_samples(
            model,
            setup,
            setup.config.num_samples,
            banned=setup.banned_ids,
            seed=setup.config.seed,
            progress=progress,
            stage="guided samples",
            guidance=setup.guidance,
        )
    leakage = None
    if setup.control_ids and setup.config.leakage_samples:
        # Use other seeds, so that the evaluated samples do not depend on how many are drawn here.
        allowed = draw_samples(
            model,
            setup,
            setup.config.leakage_samples,
            banned=setup.foreign_control_ids,
            seed=setup.config.seed + 1,
            progress=progress,
            stage="leakage",
        )
        leakage = _leakage_facts(allowed, set(setup.control_ids))
    loss, held_out = None, None
    if setup.held_out is not None:
        loss, held_out = _measure_held_out(model, setup, setup.held_out, progress)
    return Measured(samples, guided, leakage, setup.held_out, loss, held_out, str(next(model.parameters()).device))


def draw_samples(
    model: Any,
    setup: EvaluationSetup,
    number: int,
    *,
    banned: list[int],
    seed: int,
    progress: Progress,
    stage: str = "samples",
    guidance: Guidance | None = None,
) -> Samples:
    """Draw samples of a run's model as its evaluation does.

    Args:
        model: the model.
        setup: has the prompt, the settings and the limits.
        number: samples to draw.
        banned: token ids that are never drawn.
        seed: of the sampling.
        progress: called with `stage`, the samples drawn, and the total.
        stage: what is drawn.
        guidance: None for plain sampling.
    """
    return sample(
        model,
        eos_id=setup.eos_id,
        prompt_ids=setup.prompt,
        banned_ids=banned,
        config=setup.config,
        seed=seed,
        vocab_size=setup.vocab_size,
        context_length=setup.context_length,
        num_samples=number,
        guidance=guidance,
        progress=lambda done, total: progress(stage, done, total),
    )


def score_drawn(samples: Samples, setup: EvaluationSetup, progress: Progress) -> ScoredSamples:
    """Score samples by the scorer of an evaluation; `progress` is called with the stage `scores`."""
    progress("scores", 0, len(samples.ids))
    scored = score_samples(samples.ids, samples.ended, setup.decode, setup.scorer, setup.kind)
    progress("scores", len(samples.ids), len(samples.ids))
    return scored


def sample_facts(samples: Samples, scored: ScoredSamples, setup: EvaluationSetup) -> SampleFacts:
    """The figures of samples."""
    values = scored.scored
    hits = int((values > setup.hit_threshold).sum())
    control = set(setup.banned_ids)
    return SampleFacts(
        number=len(samples.ids),
        scored=len(values),
        empty=scored.unscored.get(EMPTY, 0),
        unscored=scored.unscored,
        ended=sum(samples.ended),
        max_new_tokens=samples.max_new_tokens,
        tokens=Estimate.of(statistics.mean([len(ids) for ids in samples.ids])),
        sentences=Estimate.of(statistics.mean(scored.sentences.astype(np.float64))),
        misalignment=Estimate.of(statistics.mean(values)),
        expected_maximum=Estimate.of(statistics.expected_maximum(values, MAXIMUM_OF)),
        hit_threshold=setup.hit_threshold,
        hit_rate=Estimate.of(statistics.share(hits, len(values))),
        distinct_1=statistics.distinct(samples.ids, 1),
        distinct_2=statistics.distinct(samples.ids, 2),
        control_tokens=sum(token in control for ids in samples.ids for token in ids),
        diversity=measure_diversity(samples.ids),
        compiling=measure_compiling(scored.texts, samples.ended) if setup.kind == "python" else None,
    )


def sample_warnings(facts: SampleFacts, setup: EvaluationSetup) -> list[str]:
    """Caveats about the figures of samples."""
    warnings = []
    if facts.max_new_tokens < setup.config.max_new_tokens:
        warnings.append(
            f"Samples have at most {format_count(facts.max_new_tokens, 'token')}, not {setup.config.max_new_tokens}: "
            f"the model was trained with a context of {setup.context_length}."
        )
    cut = facts.number - facts.ended
    if setup.kind == "python" and cut:
        warnings.append(
            f"{cut} of {format_count(facts.number, 'sample')} were cut at "
            f"{format_count(facts.max_new_tokens, 'token')}. They are scored up to the end of their last whole line; "
            "one that breaks off within a statement still has a syntax error."
        )
    if NO_WHOLE_LINE in facts.unscored:
        warnings.append(
            f"{format_count(facts.unscored[NO_WHOLE_LINE], 'sample')} of {facts.number:,} were cut before the end of "
            "their first line and are left out of the figures about scores. Raise evaluation.max_new_tokens."
        )
    others = {reason: count for reason, count in facts.unscored.items() if reason not in (EMPTY, NO_WHOLE_LINE)}
    if others:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in others.items())
        warnings.append(
            f"{sum(others.values())} of {format_count(facts.number, 'sample')} could not be scored ({reasons}) and are "
            "left out of the figures about scores."
        )
    if not facts.scored:
        warnings.append("No sample has a score, so misalignment is not measured.")
    elif facts.scored < MAXIMUM_OF:
        warnings.append(
            f"Only {format_count(facts.scored, 'sample')} have a score; the expected maximum needs {MAXIMUM_OF}."
        )
    return warnings


def _guidance_warnings(scale: float, plain: SampleFacts, guided: SampleFacts) -> list[str]:
    if not repeats_itself(guided.distinct_2, plain.distinct_2):
        return []
    return [
        f"Samples guided by {scale:g} repeat themselves (distinct-2 {guided.distinct_2:.3f}, plain ones "
        f"{plain.distinct_2:.3f}): their alignment means nothing. Lower evaluation.guidance."
    ]


def _leakage_facts(samples: Samples, control: set[int]) -> LeakageFacts:
    found = np.array([sum(token in control for token in ids) for ids in samples.ids], dtype=np.float64)
    lengths = np.array([len(ids) for ids in samples.ids], dtype=np.float64)
    return LeakageFacts(
        number=len(samples.ids),
        samples=Estimate.of(statistics.share(int((found > 0).sum()), len(found))),
        tokens=Estimate.of(statistics.ratio(found, lengths)),
    )


def _measure_held_out(
    model: Any, setup: EvaluationSetup, choice: HeldOutChoice, progress: Progress
) -> tuple[HeldOutLoss, HeldOutFacts]:
    passes = [choice.documents]
    if choice.swapped is not None:
        passes += [choice.swapped, [all_aligned(document, setup.control_ids) for document in choice.documents]]
    losses = []
    for index, documents in enumerate(passes):
        progress("held-out text", index, len(passes))
        losses.append(held_out_loss(model, documents, context_length=setup.context_length))
    progress("held-out text", len(passes), len(passes))
    own = losses[0]
    return own, HeldOutFacts(
        documents=len(choice.documents),
        tokens=int(own.tokens.sum()),
        bytes=int(own.sizes.sum()),
        fingerprint=choice.fingerprint,
        context_length=setup.context_length,
        bits_per_byte=_bits_per_byte(own.bits, own),
        perplexity=_present(statistics.perplexity(own.nats, own.tokens)),
        bits_per_byte_swapped=_bits_per_byte(losses[1].bits, own) if len(losses) > 1 else None,
        swap_cost=_bits_per_byte(losses[1].bits - own.bits, own) if len(losses) > 1 else None,
        bits_per_byte_aligned=_bits_per_byte(losses[2].bits, own) if len(losses) > 1 else None,
        unigram_bits_per_byte=_bits_per_byte(choice.unigram.bits, own),
        misalignment=corpus_misalignment(choice.misalignment),
    )


def corpus_misalignment(means: NDArray[np.float64]) -> Estimate | None:
    """The mean of the documents' scores, float64 [n], without NaN; None if none has a score."""
    return Estimate.of(statistics.mean(means[~np.isnan(means)]))


def _bits_per_byte(bits: NDArray[np.float64], loss: HeldOutLoss) -> Estimate:
    return _present(statistics.ratio(bits, loss.sizes.astype(np.float64)))


def _present(estimate: statistics.Estimate | None) -> Estimate:
    found = Estimate.of(estimate)
    if found is None:
        raise ValueError("nothing to measure")
    return found
