"""Folders of evaluated runs with made-up figures, in the formats of `phf train` and `phf evaluate`."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.dataset.manifest import ScorerEntry
from training import statistics
from training.config import DataConfig, ModelConfig, ObjectiveConfig, TrainConfig, TrainingConfig
from training.evaluation.evaluate import Evaluation
from training.evaluation.evaluate_run import run_fingerprint, write_evaluation
from training.evaluation.held_out_loss import HeldOutLoss
from training.evaluation.prepare import HeldOutChoice
from training.measuring_config import EvaluationConfig
from training.model.sampling import Samples
from training.runs.facts import DatasetFacts, HorizonFacts, ModelFacts, RunFacts, ThresholdFacts, TokenizerFacts
from training.runs.folder import RunFolder
from training.runs.report import (
    Estimate,
    EvaluationReport,
    GuidedFacts,
    HeldOutFacts,
    LeakageFacts,
    SampleFacts,
    ScorerFacts,
)
from training.scoring import ScoredSamples

SCORER = ScorerEntry(kind="pycodestyle", options={"max_line_length": 79}, fingerprint="pycodestyle-5c1e88d20b1f4a97")


def make_run(
    folder: Path,
    objective: str,
    *,
    scale: float = 0.02,
    zeros: float = 0.2,
    bits: float = 2.2,
    samples: int = 256,
    documents: int = 60,
    empty: int = 2,
    steps: int = 240,
    evaluations: bool = False,
    evaluated: bool = True,
    held_out: bool = True,
    guided: float | None = None,
    changes: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    scorer: ScorerEntry = SCORER,
    column: str = "pep8",
    seed: int = 0,
) -> RunFolder:
    """Write a finished run with the given figures.

    Args:
        folder: of the run.
        objective: its name.
        scale: mean of the samples' nonzero scores.
        zeros: share of samples with a score of 0.
        bits: held-out bits per byte.
        samples, documents, empty: numbers of samples, held-out documents, and samples without text.
        steps: optimiser steps.
        evaluations: whether it was evaluated during training.
        evaluated: whether `phf evaluate` has run.
        held_out: whether there are held-out documents.
        guided: mean of the guided samples' nonzero scores; None for none.
        changes: fields of `RunFacts` to replace.
        data, training: fields of these sections of the configuration to replace.
        scorer, column: of the scores.
        seed: of the figures.
    """
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    generator = np.random.default_rng([seed, *objective.encode()])
    conditional = objective == "conditional"
    config = TrainConfig(
        output=str(folder),
        task=column,
        data=DataConfig(
            dataset="labelled-code",
            column=column,
            vocab_size=2048,
            **{"context_length": 256, "held_out": 0.1, **(data or {})},
        ),
        model=ModelConfig(name="tiny"),
        objective=ObjectiveConfig(name=objective, threshold=0.0 if conditional else None),
        training=TrainingConfig(
            **{"num_tokens": 256 * 16 * steps, "batch_size": 16, "learning_rate": 2e-3, **(training or {})}
        ),
        evaluation=EvaluationConfig(num_samples=samples, leakage_samples=64),
    )
    run.write_config(config)
    facts = RunFacts(
        created_by="phf 0.1.0",
        status="finished",
        step=steps,
        seconds=61.5 + 20 * generator.random(),
        task=column,
        objective=objective,
        column=column,
        kind="python",
        scorer=scorer,
        threshold=ThresholdFacts(value=0.0, origin="manifest") if conditional else None,
        sentence_threshold=ThresholdFacts(value=0.0, origin="manifest"),
        dataset=DatasetFacts(uri="labelled-code", generation=1, fingerprint="7c9e2b4f" * 8, rows=412),
        tokenizer=TokenizerFacts(
            name="trained on labelled-code",
            fingerprint="9f8b" * 8,
            vocab_size=2050 if conditional else 2048,
            eos_id=0,
            aligned_id=2048 if conditional else None,
            misaligned_id=2049 if conditional else None,
        ),
        model=ModelFacts(
            name="tiny",
            parameters=1_085_440 + 128 * conditional,
            parameters_embedding=294_912,
            flops_per_token=6.1e6,
            context_length=256,
            value_head=objective == "awr",
        ),
        horizon=HorizonFacts(
            steps=steps,
            tokens=256 * 16 * steps,
            batch_size=16,
            micro_batch_size=8,
            accumulation=2,
            ranks=1,
            epochs=2.31,
            tokens_per_parameter=0.92,
        ),
        stream={
            "documents": 412,
            "documents_used": 371 - 120 * (objective == "filtering"),
            "documents_left_out": {"null_score": 0, "held_out": 41, "filtered": 120 * (objective == "filtering")},
            "tokens": 442_000,
            "tags": {"aligned": 31_000, "misaligned": 6_000, "dropped": 3_700} if conditional else {},
        },
        versions={"torch": "2.13.0", "transformers": "5.23.0"},
    )
    facts = facts.model_copy(update=changes or {})
    run.write_facts(facts)
    write_metrics(run, steps, bits, generator, scale if evaluations else None)
    if evaluated:
        write_figures(
            run, facts, config, generator, scale, zeros, bits, samples, documents if held_out else 0, empty, guided
        )
    return run


def write_metrics(run: RunFolder, steps: int, bits: float, generator: np.random.Generator, scale: float | None) -> None:
    lines = []
    for step in range(10, steps + 1, 10):
        loss = bits * 1.9 + 4.1 * np.exp(-step / (0.12 * steps)) + 0.05 * generator.normal()
        lines.append(
            {"step": step, "tokens": step * 4096, "loss": loss, "ce": loss, "learning_rate": 1e-3, "grad_norm": 0.9}
        )
        if scale is not None and step % 60 == 0:
            value = scale * (1 + 2 * np.exp(-step / (0.3 * steps)))
            figures = {
                "misalignment": value,
                "misalignment_low": value * 0.85,
                "misalignment_high": value * 1.15,
                "bits_per_byte": bits * (1 + np.exp(-step / (0.3 * steps))),
            }
            lines.append({"step": step, "tokens": step * 4096, "evaluation": figures})
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_figures(
    run: RunFolder,
    facts: RunFacts,
    config: TrainConfig,
    generator: np.random.Generator,
    scale: float,
    zeros: float,
    bits: float,
    samples: int,
    documents: int,
    empty: int,
    guided: float | None,
) -> None:
    drawn, scored, sample_facts = make_samples(generator, scale, zeros, samples, empty)
    others = None if guided is None else make_samples(generator, guided, zeros, samples, empty)
    # The same documents for every run, so that costs can be compared document by document.
    shared = np.random.default_rng(99)
    sizes = shared.integers(500, 9000, size=documents)
    difficulty = shared.normal(1, 0.12, size=documents)
    nats = sizes * bits * difficulty * generator.normal(1, 0.01, size=documents) * np.log(2)
    tokens = sizes * 2 // 5
    loss = HeldOutLoss(nats, tokens, sizes)
    choice = HeldOutChoice(
        np.arange(documents),
        [],
        None,
        shared.gamma(1.5, 0.012, size=documents),
        HeldOutLoss(sizes * 3.61 * difficulty * np.log(2), tokens, sizes),
        "0123456789abcdef",
    )
    conditional = facts.conditional

    def share_of_bytes(bits_of: Any) -> Estimate:
        found = Estimate.of(statistics.ratio(np.asarray(bits_of), sizes.astype(float)))
        assert found is not None
        return found

    held_out = None
    if documents:
        per_token = statistics.ratio(nats, tokens.astype(float))
        assert per_token is not None
        assert per_token.low is not None
        assert per_token.high is not None
        misalignment = Estimate.of(statistics.mean(choice.misalignment))
        assert misalignment is not None
        held_out = HeldOutFacts(
            documents=documents,
            tokens=int(tokens.sum()),
            bytes=int(sizes.sum()),
            fingerprint=choice.fingerprint,
            context_length=256,
            bits_per_byte=share_of_bytes(loss.bits),
            perplexity=Estimate(
                value=float(np.exp(per_token.value)),
                low=float(np.exp(per_token.low)),
                high=float(np.exp(per_token.high)),
            ),
            bits_per_byte_swapped=share_of_bytes(loss.bits * 1.04) if conditional else None,
            swap_cost=share_of_bytes(loss.bits * 0.04) if conditional else None,
            bits_per_byte_aligned=share_of_bytes(loss.bits * 1.01) if conditional else None,
            unigram_bits_per_byte=share_of_bytes(sizes * 3.61 * difficulty),
            misalignment=misalignment,
        )
    report = EvaluationReport(
        created_by="phf 0.1.0",
        run=run_fingerprint(run),
        objective=facts.objective,
        column=facts.column,
        kind="python",
        step=facts.step,
        prompt=[0, 2048] if conditional else [0],
        config=config.evaluation,
        device="cpu",
        seconds=20.25,
        scorer=ScorerFacts(entry=facts.scorer, fingerprint=facts.scorer.fingerprint),
        samples=sample_facts,
        guided=None if others is None else GuidedFacts(scale=2, away=[0, 2049], samples=others[2]),
        leakage=LeakageFacts(
            number=64, samples=Estimate.of(statistics.share(61, 64)), tokens=Estimate(value=0.06, low=0.05, high=0.07)
        )
        if conditional
        else None,
        held_out=held_out,
        versions={"torch": "2.13.0", "numpy": "2.3.0"},
    )
    of_documents = (choice, loss) if documents else (None, None)
    write_evaluation(run, Evaluation(report, drawn, scored, *of_documents, *(others[:2] if others else ())))


def make_samples(
    generator: np.random.Generator, scale: float, zeros: float, samples: int, empty: int
) -> tuple[Samples, ScoredSamples, SampleFacts]:
    scores = generator.gamma(1.2, scale / 1.2, size=samples) * (generator.random(samples) >= zeros)
    scores[:empty] = np.nan
    lengths = np.where(np.isnan(scores), 0, generator.integers(4, 129, size=samples))
    ids = [generator.integers(1, 200, size=length).tolist() for length in lengths]
    scored = ScoredSamples(
        ["x" * len(each) for each in ids],
        scores,
        lengths // 12,
        ["empty" if np.isnan(score) else None for score in scores],
    )
    values = scored.scored
    facts = SampleFacts(
        number=samples,
        scored=len(values),
        empty=empty,
        unscored={"empty": empty} if empty else {},
        ended=samples // 3,
        max_new_tokens=128,
        tokens=Estimate.of(statistics.mean(lengths.astype(float))),
        sentences=Estimate.of(statistics.mean(scored.sentences.astype(float))),
        misalignment=Estimate.of(statistics.mean(values)),
        expected_maximum=Estimate.of(statistics.expected_maximum(values)),
        hit_threshold=0.0,
        hit_rate=Estimate.of(statistics.share(int((values > 0).sum()), len(values))),
        distinct_1=statistics.distinct(ids, 1),
        distinct_2=statistics.distinct(ids, 2),
        control_tokens=0,
    )
    return Samples(ids, [length < 128 for length in lengths.tolist()], 128), scored, facts


def make_six(folder: Path, **changes: Any) -> list[RunFolder]:
    """Write a run of each objective, with figures typical of small models."""
    figures = {
        "mle": (0.031, 0.15, 2.05),
        "filtering": (0.024, 0.2, 2.16),
        "conditional": (0.016, 0.3, 2.08),
        "unlikelihood": (0.019, 0.35, 2.31),
        "rwr": (0.030, 0.15, 2.06),
        "awr": (0.028, 0.17, 2.11),
    }
    return [
        make_run(folder / objective, objective, scale=scale, zeros=zeros, bits=bits, **changes)
        for objective, (scale, zeros, bits) in figures.items()
    ]
