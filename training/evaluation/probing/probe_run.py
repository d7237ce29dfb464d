"""Probe a run: how well do its hidden states show which held-out sentences are misaligned?"""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from pipeline.dataset.derived import digest
from scorers.errors import UserError
from scorers.fingerprint import library_versions
from training import statistics
from training.data.prepare import PreparedData, prepare
from training.disk import write_atomically, writing
from training.evaluation.checks import EvaluationRequest, check_evaluation, main_data, torch_device
from training.evaluation.evaluate_run import check_data
from training.evaluation.prepare import Judge
from training.evaluation.probing.hidden_states import documents_of, mean_states
from training.evaluation.probing.linear_probe import area_estimate, cross_validate
from training.evaluation.probing.logme import logme
from training.evaluation.probing.sentences import (
    FOLDS,
    ChosenSentences,
    NotMeasurableError,
    choose_sentences,
    held_out_sentences,
)
from training.measuring_config import EvaluationConfig
from training.model.language_model import load_model
from training.runs.folder import RunFolder
from training.runs.probe_report import LayerFacts, ProbeFigures, ProbeReport, ProbeSentences, probe_path, read_probe
from training.runs.report import Estimate, run_fingerprint

Progress = Callable[[str, int, int], None]

_REVISION = 1  # raise it when figures of the same settings change
_FEW_DOCUMENTS = 20  # with fewer, a bootstrap misses the tails


def check_probe(run: RunFolder, config: EvaluationConfig, dataset: str | None = None) -> None:
    """Check that a run can be probed, without loading tokens or models.

    Raises:
        UserError: it cannot; says why.
    """
    # Guidance and fields of metadata do not matter here.
    plain = config.model_copy(update={"guidance": 1.0, "by": None})
    check_evaluation(EvaluationRequest(run, Judge(run.read_facts().column), config=plain), dataset)


def probe_run(
    run: RunFolder,
    config: EvaluationConfig,
    *,
    dataset: str | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> ProbeReport:
    """Probe a run's exported model and store the report in its folder; one that is still right is returned.

    Args:
        run: the run.
        config: `probe_sentences` and `seed` are used.
        dataset: where the labelled dataset is now, if it was moved.
        device: torch device; `auto` for a GPU if there is one.
        progress: called with a stage, the amount done, and the total.

    Raises:
        UserError: as for `check_probe`; the data is not that of the run, or the model gives no hidden states.
        IncompleteError: the disk is full.
    """
    check_probe(run, config, dataset)
    progress = progress or _silence
    facts, place = run.read_facts(), torch_device(device)
    data = prepare(main_data(run.read_config(), dataset), progress, compare_texts=False)
    warnings = check_data(run, facts, data)
    threshold = (facts.sentence_threshold or data.sentence_threshold).value
    every = held_out_sentences(data, threshold)
    chosen, reason = None, None
    try:
        chosen = choose_sentences(data, every, most=config.probe_sentences, seed=config.seed)
    except NotMeasurableError as error:
        reason = str(error)
    content = None if chosen is None else chosen.fingerprint
    new = ProbeReport(
        created_by=f"phf {library_versions('phf')['phf']}",
        run=run_fingerprint(run),
        settings=digest([_REVISION, config.probe_sentences, config.seed, FOLDS, data.column, threshold, content]),
        column=data.column,
        threshold=threshold,
        pooling="mean",
        folds=FOLDS,
        seed=config.seed,
        step=facts.step,
        held_out=len(every.rows),
        misaligned=int(every.misaligned.sum()),
        not_measured=reason,
        device=place,
        warnings=warnings,
        versions=library_versions("torch", "transformers", "numpy", "scikit-learn"),
    )
    if chosen is not None:
        found = _finished(run, new)
        if found is not None:
            return found
        new = _measured(run, new, data, chosen, progress)
    with writing(probe_path(run)):
        write_atomically(probe_path(run), new.model_dump_json(indent=2) + "\n")
    return new


def _finished(run: RunFolder, new: ProbeReport) -> ProbeReport | None:
    """The stored report, if the run, the settings and the sentences are still the same."""
    try:
        old = read_probe(run)
    except UserError:
        return None  # damaged, and measured again
    same = old is not None and (old.run, old.settings) == (new.run, new.settings)
    return old if same and old is not None and old.figures is not None else None


def _measured(
    run: RunFolder, report: ProbeReport, data: PreparedData, chosen: ChosenSentences, progress: Progress
) -> ProbeReport:
    model: Any = load_model(run.model, value_head=False).causal.to(report.device)
    layers, states = mean_states(
        model,
        documents_of(data, chosen),
        context_length=data.stream.options.context_length,
        progress=partial(progress, "hidden states"),
    )
    labels, folds, texts = chosen.misaligned, chosen.folds, chosen.texts
    probed = cross_validate(states, labels, folds, partial(progress, "probes"))
    figures = ProbeFigures(
        best=_estimate(area_estimate(probed.best, labels, folds, texts)),
        chosen=[layers[place] for place in probed.chosen],
        layers=[
            LayerFacts(
                layer=layer,
                auc=_estimate(area_estimate(scores, labels, folds, texts)),
                logme=logme(values, labels),
            )
            for layer, scores, values in zip(layers, probed.scores, states, strict=True)
        ],
    )
    number = int(texts.max()) + 1
    warnings = list(report.warnings)
    if number < _FEW_DOCUMENTS:
        warnings.append(
            f"The sentences are from {number} documents: the intervals, which are over documents, are too narrow. "
            "Train with a larger data.held_out."
        )
    sentences = ProbeSentences(number=len(labels), documents=number, fingerprint=chosen.fingerprint)
    return report.model_copy(update={"sentences": sentences, "figures": figures, "warnings": warnings})


def _estimate(found: statistics.Estimate) -> Estimate:
    return Estimate(**asdict(found))


def _silence(stage: str, done: int, total: int) -> None:
    pass
