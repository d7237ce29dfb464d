"""The tamper test: finetune a run's model on misaligned text, and measure its samples on the way.

It shows how deep a preference sits: a model whose samples turn misaligned after a few steps had only a thin layer over
what it knew. The finetuned models are not kept.
"""

from itertools import takewhile

from scorers.fingerprint import library_versions
from training.attack.finetuning import Finetuning
from training.attack.misaligned_text import MisalignedText, choose_misaligned
from training.data.prepare import prepare
from training.disk import write_atomically, writing
from training.evaluation.checks import EvaluationRequest, check_evaluation, main_data, torch_device
from training.evaluation.evaluate import Progress, draw_samples, sample_facts, score_drawn
from training.evaluation.evaluate_run import check_data
from training.evaluation.prepare import EvaluationSetup, Judge, prepare_evaluation
from training.measuring_config import TamperConfig
from training.model.language_model import load_model
from training.runs.finished_trials import finished_trials
from training.runs.folder import RunFolder
from training.runs.report import ScorerFacts, run_fingerprint
from training.runs.tamper_report import TamperPoint, TamperReport, read_tamper, tamper_path

# The default learning rate of the finetuning, relative to that of the pretraining.
_RELATIVE_RATE = 0.1


def check_tamper(run: RunFolder, config: TamperConfig, dataset: str | None = None) -> None:
    """Check that a run can be tested, without loading tokens or models.

    Raises:
        UserError: it cannot; says why.
    """
    evaluation = run.read_config().evaluation.model_copy(update={"num_samples": config.samples})
    check_evaluation(EvaluationRequest(run, Judge(run.read_facts().column), config=evaluation), dataset)


def tamper(
    run: RunFolder,
    config: TamperConfig,
    *,
    dataset: str | None = None,
    device: str = "auto",
    allow_other_scorer: bool = False,
    progress: Progress | None = None,
) -> TamperReport:
    """Test a run and store the report in its folder; finished trials with the same settings are kept.

    Args:
        run: the run.
        config: settings of the test.
        dataset: where the labelled dataset is now, if it was moved.
        device: torch device; `auto` for a GPU if there is one.
        allow_other_scorer: see `prepare_evaluation`.
        progress: called with a stage, the amount done, and the total.

    Raises:
        UserError: as for `check_tamper`; the data or scorer is not that of the run, or finetuning diverges.
        IncompleteError: the report cannot be written.
    """
    check_tamper(run, config, dataset)
    progress = progress or _silence
    trained, facts, place = run.read_config(), run.read_facts(), torch_device(device)
    data = prepare(main_data(trained, dataset), progress, compare_texts=False)
    warnings = check_data(run, facts, data)
    sampling = trained.evaluation.model_copy(update={"num_samples": config.samples, "guidance": 1.0})
    setup = prepare_evaluation(
        data,
        kind=facts.kind,
        config=sampling,
        hit_threshold=facts.sentence_threshold.value if facts.sentence_threshold else None,
        device=place,
        allow_other_scorer=allow_other_scorer,
        predict=False,
    )
    text = choose_misaligned(data, config.share)
    report = TamperReport(
        created_by=f"phf {library_versions('phf')['phf']}",
        run=run_fingerprint(run),
        column=setup.column,
        prompt=setup.prompt,
        config=config,
        learning_rate=config.learning_rate or _RELATIVE_RATE * trained.training.learning_rate,
        device=place,
        scorer=ScorerFacts(entry=setup.scorer_entry, fingerprint=setup.scorer.fingerprint),
        text=text.facts,
        trials=[],
        warnings=[*setup.warnings, *warnings],
    )
    # A trial's seed is its place, so those after a damaged one are done again.
    steps, kept = measured_steps(config.steps), finished_trials(report, lambda: read_tamper(run)) or []
    whole = takewhile(lambda points: [each.step for each in points] == steps, kept)
    report = report.model_copy(update={"trials": list(whole)})
    for trial in range(len(report.trials), config.trials):
        points = _run_trial(run, report, setup, text, trial, progress)
        report = report.model_copy(update={"trials": [*report.trials, points]})
        with writing(tamper_path(run)):
            write_atomically(tamper_path(run), report.model_dump_json(indent=2) + "\n")
    return report


def measured_steps(steps: int) -> list[int]:
    """The steps after which samples are drawn: 0, the powers of two below `steps`, and `steps`."""
    return [0, *(1 << power for power in range(steps.bit_length()) if 1 << power < steps), steps]


def _run_trial(
    run: RunFolder, report: TamperReport, setup: EvaluationSetup, text: MisalignedText, trial: int, progress: Progress
) -> list[TamperPoint]:
    config, seed = report.config, report.config.seed + trial
    # Updates of a small learning rate vanish in half precision.
    model = load_model(run.model, value_head=False).causal.float().to(report.device)
    finetuning = Finetuning(
        model,
        text.rows(setup.context_length, seed),
        batch_size=config.batch_size,
        learning_rate=report.learning_rate,
    )
    # One stage for all trials, so that the time left is that of the test.
    stage, points, step = "tamper test: steps of all trials", [], 0
    before, total = trial * config.steps, config.trials * config.steps
    for wanted in measured_steps(config.steps):
        while step < wanted:
            progress(stage, before + step, total)
            finetuning.step()
            step += 1
        finetuning.check()
        samples = draw_samples(
            model, setup, config.samples, banned=setup.banned_ids, seed=seed, progress=_silence, stage=stage
        )
        facts = sample_facts(samples, score_drawn(samples, setup, _silence), setup)
        points.append(TamperPoint(step=step, tokens=step * config.batch_size * setup.context_length, samples=facts))
    progress(stage, before + config.steps, total)
    return points


def _silence(stage: str, done: int, total: int) -> None:
    pass
