"""Sample a conditional run at several guidance scales, and store each scale as soon as it is finished.

`RUN/evaluation/guidance/report.json` lists the finished scales, and its state of the run and settings. A sweep with the
same ones continues it; one with others starts anew.
"""

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scorers.errors import UserError
from scorers.fingerprint import library_versions
from training import statistics
from training.data.prepare import prepare
from training.disk import write_atomically, writing
from training.evaluation.checks import main_data, torch_device
from training.evaluation.evaluate import Progress, draw_samples, sample_facts, sample_warnings, score_drawn
from training.evaluation.evaluate_run import check_data, samples_table
from training.evaluation.generating import choose_tag, open_writer
from training.evaluation.guidance_request import SweepRequest, check_sweep
from training.evaluation.likelihood import Law, log_probabilities
from training.evaluation.prepare import EvaluationSetup, prepare_evaluation
from training.evaluation.recommended_guidance import MOST_PERPLEXITY, choose_scale, half_facts, perplexity, rule_out
from training.evaluation.reuse import find_drawn, read_drawn
from training.model.language_model import load_model
from training.model.sampling import Guidance, Samples
from training.runs.folder import RunFolder
from training.runs.guidance_report import (
    SCALE_SCHEMA,
    GuidanceReport,
    Recommendation,
    ReferenceFacts,
    ScaleFacts,
    guidance_folder,
    read_guidance,
    read_scale,
    scale_file,
)
from training.runs.lock import sole_writer
from training.runs.report import REPORT_NAME, Estimate, SampleFacts, ScorerFacts, run_fingerprint
from training.runs.tables import SAMPLES_SCHEMA, write_table

# Settings that samples depend on; the others are of other parts of an evaluation.
_OF_SAMPLES = {"num_samples", "max_new_tokens", "temperature", "top_p", "batch_size", "seed"}


def sweep_guidance(
    request: SweepRequest,
    *,
    dataset: str | None = None,
    device: str = "auto",
    allow_other_scorer: bool = False,
    progress: Progress | None = None,
) -> GuidanceReport:
    """Draw, score and store samples at each scale, and recommend one.

    Finished scales of the same state and settings are kept, also those that are not asked for now. Each scale has the
    same seed. Scale 1 takes the samples of an evaluation with the same settings, if there is one.

    Args:
        request: the sweep.
        dataset: where the labelled dataset is now, if it was moved.
        device: torch device; `auto` for a GPU if there is one.
        allow_other_scorer: see `prepare_evaluation`.
        progress: called with a stage, the amount done, and the total.

    Raises:
        UserError: as for `check_sweep`, or the data or scorer is not that of the run.
        IncompleteError: the disk is full, or another process still writes a sweep of the run.
    """
    check_sweep(request, dataset)
    run, facts, place = request.run, request.run.read_facts(), torch_device(device)
    progress = progress or _silence
    data = prepare(main_data(run.read_config(), dataset), progress, compare_texts=False)
    warnings = check_data(run, facts, data)
    threshold = facts.sentence_threshold
    setup = prepare_evaluation(
        data,
        kind=facts.kind,
        config=request.plain,
        hit_threshold=None if threshold is None else threshold.value,
        device=place,
        allow_other_scorer=allow_other_scorer,
        predict=False,
    )
    setup.warnings.extend(warnings)
    with sole_writer(guidance_folder(run)), writing(guidance_folder(run)):
        report = _continued(run, _new_report(request, setup, place))
        # From here on, tables on disk belong to this sweep or to none.
        _write(run, report)
        report = _draw_missing(request, report, setup, progress)
        report = _measure_missing(request, report, progress)
        report = _finished(run, report, setup)
        _write(run, report)
    return report


def _new_report(request: SweepRequest, setup: EvaluationSetup, device: str) -> GuidanceReport:
    reference = None
    if request.reference is not None:
        other = request.reference.path.resolve().name
        objective = request.reference.read_facts().objective
        reference = ReferenceFacts(name=other, objective=objective, run=run_fingerprint(request.reference))
    return GuidanceReport(
        created_by=f"phf {library_versions('phf')['phf']}",
        run=run_fingerprint(request.run),
        column=setup.column,
        kind=setup.kind,
        step=request.run.read_facts().step,
        prompt=setup.prompt,
        away=[*setup.prompt[:-1], setup.control_ids[-1]],
        config=request.plain,
        device=device,
        scorer=ScorerFacts(entry=setup.scorer_entry, fingerprint=setup.scorer.fingerprint),
        reference=reference,
        most_perplexity=MOST_PERPLEXITY,
        scales=[],
        warnings=setup.warnings,
        versions=library_versions("torch", "transformers", "tokenizers", "numpy"),
    )


def _continued(run: RunFolder, new: GuidanceReport) -> GuidanceReport:
    """The report with the finished scales of the last sweep, if that had the same state and settings."""
    try:
        old = read_guidance(run)
    except UserError:
        old = None  # A damaged sweep is drawn again.
    if old is None or _drawn_as(old) != _drawn_as(new):
        return new
    kept = [each for each in old.scales if _is_whole(run, each)]
    if old.reference != new.reference:
        kept = [_without_likelihood(each) for each in kept]
    return new.model_copy(update={"scales": kept})


def _drawn_as(report: GuidanceReport) -> dict[str, Any]:
    """All that the samples and figures of a scale depend on, except the reference."""
    parts = {"run", "column", "kind", "prompt", "away", "scorer"}
    return {**report.model_dump(include=parts), "config": report.config.model_dump(include=_OF_SAMPLES)}


def _is_whole(run: RunFolder, facts: ScaleFacts) -> bool:
    try:
        read_scale(run, facts)
    except UserError:
        return False
    return True


def _without_likelihood(facts: ScaleFacts) -> ScaleFacts:
    halves = {name: getattr(facts, name).model_copy(update={"perplexity": None}) for name in ("choosing", "reporting")}
    return facts.model_copy(update={"perplexity": None, **halves})


def _draw_missing(
    request: SweepRequest, report: GuidanceReport, setup: EvaluationSetup, progress: Progress
) -> GuidanceReport:
    run = request.run
    finished = {scale_file(run, each.scale) for each in report.scales}
    for path in guidance_folder(run).glob("g-*.parquet"):
        if path not in finished:
            path.unlink()
    model: Any = None
    for scale in sorted({1.0, *request.scales}):
        if report.of(scale) is not None:
            continue
        samples = _plain_samples(request) if scale == 1 else None
        if samples is None:
            if model is None:
                model = load_model(run.model, value_head=False).causal.to(report.device)
            samples = draw_samples(
                model,
                setup,
                setup.config.num_samples,
                banned=setup.banned_ids,
                seed=setup.config.seed,
                progress=progress,
                stage=f"samples, g = {scale:g}",
                guidance=Guidance(scale, report.away),
            )
        scored = score_drawn(samples, setup, progress)
        unmeasured = [pa.nulls(len(samples.ids), field.type) for field in SCALE_SCHEMA][len(SAMPLES_SCHEMA) :]
        table = pa.table([*samples_table(samples, scored).columns, *unmeasured], schema=SCALE_SCHEMA)
        write_table(scale_file(run, scale), table)
        report = _with_scale(report, scale, sample_facts(samples, scored, setup), table)
        _write(run, report)
    return report


def _plain_samples(request: SweepRequest) -> Samples | None:
    drawn = find_drawn(request.run, request.plain)
    return None if drawn is None else read_drawn(drawn, lambda documents: np.zeros(len(documents))).samples


def _measure_missing(request: SweepRequest, report: GuidanceReport, progress: Progress) -> GuidanceReport:
    """Measure the likelihood of samples under the reference, at the scales where it is missing."""
    missing = [each for each in report.scales if each.perplexity is None]
    if request.reference is None or not missing:
        return report
    writer = open_writer(request.reference.model, report.device)
    law = Law(
        prompt_ids=tuple(writer.prompt_ids("", choose_tag(writer.tags, None, 1))),
        eos_id=writer.eos_id,
        banned_ids=tuple(writer.banned_ids),
        vocab_size=writer.tokenizer.base_size,
        context_length=writer.context_length,
    )
    for facts in missing:
        table = read_scale(request.run, facts)
        stage = f"likelihood, g = {facts.scale:g}"
        found = log_probabilities(
            writer.model,
            law,
            table["ids"].to_pylist(),
            table["ended"].to_pylist(),
            progress=partial(progress, stage),
        )
        if not np.isfinite(found.nats).all():
            raise UserError(
                f"--reference {request.reference.path} gives some samples of {request.run.path} a probability of 0: "
                "it never draws some of their tokens. Give another reference."
            )
        likelihood = [pa.array(found.nats), pa.array(found.tokens)]
        table = pa.table([*table.columns[: len(SAMPLES_SCHEMA)], *likelihood], schema=SCALE_SCHEMA)
        write_table(scale_file(request.run, facts.scale), table)
        report = _with_scale(report, facts.scale, facts.samples, table)
        _write(request.run, report)
    return report


def _with_scale(report: GuidanceReport, scale: float, samples: SampleFacts, table: pa.Table) -> GuidanceReport:
    facts = ScaleFacts(
        scale=scale,
        samples=samples,
        perplexity=perplexity(table),
        choosing=half_facts(table, 0, samples.hit_threshold),
        reporting=half_facts(table, 1, samples.hit_threshold),
    )
    others = [each for each in report.scales if each.scale != scale]
    return report.model_copy(update={"scales": sorted([*others, facts], key=lambda each: each.scale)})


def _finished(run: RunFolder, report: GuidanceReport, setup: EvaluationSetup) -> GuidanceReport:
    """The report of a sweep in which nothing is missing, with its recommendation and warnings."""
    plain = report.of(1)
    if plain is None:
        raise ValueError("scale 1 is always drawn")
    scales = [each.model_copy(update={"ruled_out": rule_out(each.choosing, plain.choosing)}) for each in report.scales]
    chosen, recommended = choose_scale(scales), None
    if chosen is not None:
        difference = None
        if chosen.scale != 1:
            difference = statistics.difference(*(_reported_scores(run, each) for each in (chosen, plain)))
        recommended = Recommendation(scale=chosen.scale, difference=Estimate.of(difference))
    warnings, known = list(setup.warnings), set[str]()
    for each in sorted(scales, key=lambda each: each.scale != 1):
        found = [text for text in sample_warnings(each.samples, setup) if text not in known]
        warnings += [text if each.scale == 1 else f"g = {each.scale:g}: {text}" for text in found]
        known.update(found)
    update = {"scales": scales, "recommended": recommended, "warnings": warnings, "finished": True}
    return report.model_copy(update=update)


def _reported_scores(run: RunFolder, facts: ScaleFacts) -> NDArray[np.float64]:
    scores: NDArray[np.float64] = read_scale(run, facts)["score"].to_numpy()[1::2]
    return scores[~np.isnan(scores)]


def _write(run: RunFolder, report: GuidanceReport) -> None:
    write_atomically(guidance_folder(run) / REPORT_NAME, report.model_dump_json(indent=2) + "\n")


def _silence(stage: str, done: int, total: int) -> None:
    pass
