"""Measure how far a run is from a reference, and how likely the run's stored samples are under it.

KL(reference || run) is the mean, over samples x of the reference, of log p_ref(x) - log p_run(x), as in the paper's
section 3 (arXiv 2302.08582), there with GPT-3 as the reference.
"""

import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from scorers.amounts import format_count
from scorers.errors import UserError
from scorers.fingerprint import library_versions
from scorers.shell import phf
from training import statistics
from training.disk import check_writable, write_atomically, writing
from training.evaluation.checks import check_model
from training.evaluation.references.reference import Reference
from training.evaluation.references.samples import ReferenceSamples
from training.evaluation.references.text_model import NEVER_DRAWN, Measured, TextModel, Texts, open_run
from training.measuring_config import EvaluationConfig
from training.model.sampling import Samples
from training.runs.folder import RunFolder
from training.runs.reference_report import (
    DivergenceFacts,
    DrawnFacts,
    ReferenceReport,
    UnderReferenceFacts,
    read_reference_report,
    reference_path,
    samples_digest,
)
from training.runs.report import Estimate, SampleFacts, read_report, run_fingerprint
from training.runs.tables import GUIDED_NAME, SAMPLES_NAME, SAMPLES_SCHEMA, read_table

Progress = Callable[[str, int, int], None]


def check_comparison(run: RunFolder) -> None:
    """Check that a run can be compared with a reference, without loading models.

    Raises:
        UserError: it has no model yet, or its folder cannot be written.
    """
    check_model(run)
    check_writable(
        run.evaluation, "The result is stored in the folder of the run: make that writable, or compare a copy of it."
    )


def compare_with_reference(
    run: RunFolder,
    reference: Reference,
    config: EvaluationConfig,
    *,
    device: str,
    progress: Progress | None = None,
) -> ReferenceReport:
    """Compare a run with a reference, and store the report in the run's folder; one that is still right is returned.

    A run that is its own reference is measured like every other: its divergence is 0.

    Args:
        run: the run, with a finished model.
        reference: what it is compared with.
        config: settings of the reference's samples.
        device: torch device.
        progress: called with a stage, the amount done, and the total.

    Raises:
        UserError: a model, stored samples or the reference's samples cannot be read.
        IncompleteError: the report cannot be written.
    """
    began = time.perf_counter()
    found = read_comparison(run, reference, config)
    if found is not None:
        return found
    sets = _stored_samples(run)
    hashes = _hashes(sets)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    samples = reference.samples(config, _stage(progress, "reference samples"))
    model = open_run(run, device)
    measured = model.measure(samples.texts, _stage(progress, "reference samples under the run"))
    is_endpoint = reference.facts.kind == "endpoint"
    warnings = _warnings(run, config, samples, measured, evaluated=bool(sets), endpoint=is_endpoint)
    under = {}
    if reference.model is not None:
        for name, each in sets.items():
            stage = _stage(progress, f"{name} under the reference")
            under[name] = _under(reference.model(), model, each, hashes[name], stage)
    report = ReferenceReport(
        created_by=f"phf {library_versions('phf')['phf']}",
        run=run_fingerprint(run),
        name=reference.name,
        reference=reference.facts,
        drawn=_drawn(config, samples),
        prompt=list(model.law.prompt_ids),
        divergence=_divergence(samples, measured),
        under_reference={name: each for name, each in under.items() if each is not None},
        device=str(torch.device(device)),
        seconds=round(time.perf_counter() - began, 3),
        warnings=warnings,
        versions=library_versions("torch", "transformers", "tokenizers", "numpy"),
    )
    path = reference_path(run, reference.name)
    with writing(path):
        write_atomically(path, report.model_dump_json(indent=2) + "\n")
    return report


def read_comparison(run: RunFolder, reference: Reference, config: EvaluationConfig) -> ReferenceReport | None:
    """The stored report, if the run, the reference, the settings and the run's samples are still the same.

    Raises:
        UserError: samples of the run cannot be read.
    """
    try:
        report = read_reference_report(run, reference.name)
    except UserError:
        return None  # damaged, and measured anew
    if report is None or report.run != run_fingerprint(run):
        return None
    facts, drawn = report.reference, report.drawn
    same_reference = (facts.kind, facts.fingerprint) == (reference.facts.kind, reference.facts.fingerprint)
    same_settings = all(getattr(drawn, name) == getattr(config, name) for name in _SETTINGS)
    hashes = _hashes(_stored_samples(run)) if reference.model is not None else {}
    same_samples = {name: each.samples for name, each in report.under_reference.items()} == hashes
    return report if same_reference and same_settings and same_samples else None


_SETTINGS = ("reference_samples", "reference_tokens", "seed")


def _hashes(sets: dict[str, Samples]) -> dict[str, str]:
    return {name: samples_digest(each.ids, each.ended) for name, each in sets.items()}


def _drawn(config: EvaluationConfig, samples: ReferenceSamples) -> DrawnFacts:
    return DrawnFacts(**{name: getattr(config, name) for name in _SETTINGS}, max_tokens=samples.max_tokens)


def _stage(progress: Progress | None, stage: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(stage, done, total)


def _stored_samples(run: RunFolder) -> dict[str, Samples]:
    """The samples of the run's last evaluation, plain and guided; none if it was trained since."""
    report = read_report(run)
    if report is None or report.run != run_fingerprint(run):
        return {}
    found = {"samples": (SAMPLES_NAME, report.samples)}
    if report.guided is not None:
        found["guided"] = (GUIDED_NAME, report.guided.samples)
    return {name: _read(run, *each) for name, each in found.items()}


def _read(run: RunFolder, name: str, facts: SampleFacts) -> Samples:
    table = read_table(run.evaluation / name, SAMPLES_SCHEMA, run, facts.number)
    return Samples(table["ids"].to_pylist(), table["ended"].to_pylist(), facts.max_new_tokens)


def _divergence(samples: ReferenceSamples, measured: Measured) -> DivergenceFacts | None:
    chosen, under = measured.chosen, measured.likelihood
    if NEVER_DRAWN in measured.left_out or not len(chosen):
        return None
    texts = samples.texts.select(chosen.tolist())
    nats = samples.nats[chosen] - under.nats
    tokens = under.tokens
    if texts.ids is not None:
        tokens = np.array([len(ids) + end for ids, end in zip(texts.ids, texts.ended, strict=True)], dtype=np.int64)
    kl, per_token = statistics.mean(nats), statistics.ratio(nats, tokens.astype(np.float64))
    if kl is None or per_token is None:
        return None
    return DivergenceFacts(
        texts=len(chosen),
        tokens=int(tokens.sum()),
        ended=sum(texts.ended),
        reencoded=measured.reencoded,
        left_out=measured.left_out,
        kl=Estimate(**asdict(kl)),
        kl_per_token=Estimate(**asdict(per_token)),
    )


def _under(
    reference: TextModel, run: TextModel, samples: Samples, content: str, progress: Callable[[int, int], None] | None
) -> UnderReferenceFacts | None:
    texts = Texts(run.decode(samples.ids), samples.ids, samples.ended, run.vocabulary)
    measured = reference.measure(texts, progress)
    found, kept = measured.likelihood, texts.select(measured.chosen.tolist())
    sizes = np.array([len(text.encode()) for text in kept.texts], dtype=np.int64)
    perplexity, bits = found.perplexity(), found.bits_per_byte(sizes)
    if perplexity is None:
        return None
    return UnderReferenceFacts(
        texts=len(kept),
        tokens=int(found.tokens.sum()),
        ended=sum(kept.ended),
        reencoded=measured.reencoded,
        left_out=measured.left_out,
        samples=content,
        perplexity=Estimate(**asdict(perplexity)),
        bits_per_byte=Estimate.of(bits),
    )


def _warnings(
    run: RunFolder,
    config: EvaluationConfig,
    samples: ReferenceSamples,
    measured: Measured,
    *,
    evaluated: bool,
    endpoint: bool,
) -> list[str]:
    found, number = [], len(samples.texts)
    if samples.max_tokens is not None and samples.max_tokens < config.reference_tokens:
        found.append(
            f"Samples of the reference have at most {format_count(samples.max_tokens, 'token')}, not "
            f"{config.reference_tokens}: it was trained with a shorter context."
        )
    if number < config.reference_samples:
        found.append(f"The reference has {format_count(number, 'sample')}, not {config.reference_samples:,}.")
    if measured.left_out.get(NEVER_DRAWN):
        found.append(
            f"{measured.left_out[NEVER_DRAWN]} of {format_count(number, 'sample')} of the reference hold a token that "
            "the run never draws, so that KL is infinite."
        )
    elif measured.left_out:
        found.append(
            f"{sum(measured.left_out.values())} of {format_count(number, 'sample')} of the reference are left out, "
            "because the run's tokenizer does not reproduce their text."
        )
    if measured.reencoded:
        found.append(
            "The samples of the reference are tokenised anew for the run, whose probability of a text is then that of "
            "one of its tokenisations: KL is approximate, and a little too high for texts that were cut."
        )
    if endpoint:
        found.append(
            "The reference is an endpoint: phf cannot see whether the model behind it changes, nor whether its samples "
            "and log-probabilities are those of the whole distribution."
        )
    elif not evaluated:
        found.append(
            "The likelihood of the run's own samples needs samples of its present state: run "
            f"`{phf('evaluate', run.path)}` first."
        )
    return found
