"""`phf evaluate`: sample runs, score the samples, and measure how well the models predict held-out text."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from scorers.console import print_json, set_up_logs
from scorers.errors import UserError
from scorers.flags import Sets, given_settings
from training.options import AllowOtherScorer, Device, MovedDataset

if TYPE_CHECKING:
    from training.evaluation.prepare import Judge
    from training.measuring_config import EvaluationConfig
    from training.runs.folder import RunFolder
    from training.scoring import ScoredSamples


def evaluate(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Folders that `phf train` wrote.")],
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=1, help="Samples to draw; by default as in the run's configuration."),
        Sets("num_samples"),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance",
            min=0,
            metavar="G",
            help="Conditional runs: also draw as many samples guided by G away from the worst tag; 1 for none.",
        ),
        Sets("guidance"),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="FIELD",
            help="Held-out figures also by the value of a metadata field of the documents, such as source, or by "
            "`inputs`, the files they come from.",
        ),
        Sets("by"),
    ] = None,
    guidance_sweep: Annotated[
        str | None,
        typer.Option(
            "--guidance-sweep",
            metavar="G,G,...",
            help="Conditional runs: only draw samples at each of these guidance scales, such as 1,1.5,2,3,5, and "
            "recommend one.",
            rich_help_panel="Instead of a plain evaluation",
        ),
    ] = None,
    references: Annotated[
        list[str] | None,
        typer.Option(
            "--reference",
            metavar="RUN|MODEL|FILE|URL",
            help="Only measure KL from this run, model, file of samples or OpenAI-compatible endpoint (extra "
            "endpoint), and how likely samples are under it.",
            rich_help_panel="Instead of a plain evaluation",
        ),
    ] = None,
    reference_model: Annotated[
        str | None,
        typer.Option(
            "--reference-model",
            metavar="NAME",
            help="Name of the model at an endpoint; by default the only one.",
            rich_help_panel="Endpoints",
        ),
    ] = None,
    reference_prompt: Annotated[
        str | None,
        typer.Option(
            "--reference-prompt",
            metavar="TEXT",
            help="Text that begins a document, such as '<|endoftext|>', where an endpoint refuses an empty prompt.",
            rich_help_panel="Endpoints",
        ),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Only measure how well hidden states show which held-out sentences are misaligned.",
            rich_help_panel="Instead of a plain evaluation",
        ),
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a field of the run's `evaluation` section, such as top_p=1."
        ),
    ] = None,
    dataset: MovedDataset = None,
    device: Device = "auto",
    allow_other_scorer: AllowOtherScorer = False,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="NAME",
            help="Judge by the scorer of this column of the dataset, instead of the one trained on; repeatable.",
        ),
    ] = None,
    scorers: Annotated[
        list[str] | None,
        typer.Option(
            "--scorer",
            metavar="NAME=KIND[:VALUE][,OPTION=VALUE...]",
            help="Judge by another scorer, written as for `phf label`; needs --hit-threshold; repeatable.",
        ),
    ] = None,
    hit_threshold: Annotated[
        float | None,
        typer.Option(
            "--hit-threshold",
            metavar="X",
            help="Samples with a higher score are hits; by default the threshold of aligned.",
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            metavar="NAME|FILE|FOLDER,...",
            help="Only measure these tasks of the lm-evaluation-harness (extra lm-eval); repeatable.",
            rich_help_panel="Instead of a plain evaluation",
        ),
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(
            "--num-fewshot",
            min=0,
            help="Solved examples before each document of a task, unless it fixes 0.",
            rich_help_panel="Tasks",
        ),
    ] = None,
    task_limit: Annotated[
        int | None,
        typer.Option(
            "--task-limit", min=1, metavar="N", help="Only the first N documents of each task.", rich_help_panel="Tasks"
        ),
    ] = None,
    allow_task_code: Annotated[
        bool,
        typer.Option(
            "--allow-task-code",
            help="Allow local task files to run their own Python, and tasks to run what the model writes.",
            rich_help_panel="Tasks",
        ),
    ] = False,
    scenarios: Annotated[
        list[str] | None,
        typer.Option(
            "--scenario",
            metavar="NAME|prompted=FILE|FILE.yaml",
            help="Only evaluate this scenario: unconditional, held-out, prompted=FILE, or of a file; repeatable. "
            "--set then changes its fields.",
            rich_help_panel="Instead of a plain evaluation",
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            metavar="URL",
            help="Scenarios: have samples drawn by an endpoint that serves the run's exported model, such as vLLM.",
            rich_help_panel="Endpoints",
        ),
    ] = None,
    sampler_model: Annotated[
        str | None,
        typer.Option(
            "--sampler-model",
            metavar="NAME",
            help="Name of the model at the sampler; by default the only one.",
            rich_help_panel="Endpoints",
        ),
    ] = None,
    show_text: Annotated[
        int, typer.Option("--show-text", min=0, metavar="N", help="Print N samples of each run with their scores.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the reports as JSON.")] = False,
) -> None:
    """Sample trained models, score the samples, and measure held-out text.

    Samples are scored by the scorer of the training data. A conditional model
    is sampled after its best tag; control tokens are banned, and how often they
    would occur is measured separately. With --guidance it is also sampled away
    from what it writes after its worst tag, and both are reported side by side;
    --guidance-sweep finds out which scale to take.
    Figures have 95 % intervals and are kept in RUN/evaluation for `phf compare`.

    A run on several columns is judged by each. --column and --scorer judge by
    another scorer, to see whether a model has only learnt to please the scorer
    that it was trained by. Such an evaluation is kept separately, and reuses
    samples that were drawn with the same settings.

    --tasks measures what a model can do, after its best tag. A task file is a
    program: those from elsewhere can run code. Files that could are refused,
    unless --allow-task-code is given.

    --reference compares each run with another run, usually that of mle, with a
    local model, with a file of samples and their log-probabilities, or with a
    model behind an OpenAI-compatible endpoint: KL is the mean of log p_ref -
    log p over its samples, at temperature 1. The samples of an earlier
    evaluation are measured under a run or a model too. A guidance sweep
    measures the likelihood of its samples under a run. The key of an endpoint
    is read from OPENAI_API_KEY.

    With --scenario the models continue prompts: of a file (JSONL, text,
    CSV or Parquet), or the first sentences of held-out documents; or, as the paper
    samples them, no prompts. A finished scenario is kept, and an interrupted
    one goes on.

    --probe fits a linear probe on the hidden states of held-out sentences, read
    without control tokens, and measures on other documents how well it separates
    misaligned sentences from aligned ones (AUC), by layer.

    Example: phf evaluate runs/conditional --samples 512
    """
    flags = given_settings(evaluate, locals())
    set_up_logs()
    from training.evaluation.checks import EvaluationRequest, check_evaluations
    from training.evaluation.evaluate_run import evaluate_run
    from training.progress import StageProgress
    from training.runs.folder import RunFolder

    # Check all runs first: a problem with the last must not appear after an hour of evaluating the others.
    chosen = [RunFolder.existing(run) for run in runs]
    of_drawing = {"--samples": samples, "--dataset": dataset, "--allow-other-scorer": allow_other_scorer or None}
    of_samples = {
        "--guidance": guidance,
        "--by": by,
        "--column": columns,
        "--scorer": scorers,
        "--hit-threshold": hit_threshold,
        "--show-text": show_text or None,
    }
    of_tasks = {"--num-fewshot": num_fewshot, "--task-limit": task_limit, "--allow-task-code": allow_task_code or None}
    of_endpoints = {"--reference-model": reference_model, "--reference-prompt": reference_prompt}
    if not references or guidance_sweep is not None:
        _refuse_unused("it is for a --reference that is an endpoint", of_endpoints)
    if not scenarios:
        _refuse_unused("only samples of a --scenario are drawn by a server", {"--sampler": sampler})
    if sampler is None:
        _refuse_unused("there is no --sampler", {"--sampler-model": sampler_model})
    if scenarios:
        from training.commands.evaluate_scenarios import evaluate_scenarios

        others = {
            "--tasks": tasks,
            "--reference": references,
            "--guidance-sweep": guidance_sweep,
            "--samples": samples,
            "--probe": probe or None,
        }
        _refuse_unused(
            "a scenario has its own number of samples (--set continuations=4 and max_prompts=100), and is scored by "
            "the scorer that the run was trained with",
            {**of_samples, **others, **of_tasks, "--guidance": None, "--hit-threshold": None},
        )
        evaluate_scenarios(
            chosen, scenarios, overrides or [], guidance=guidance, sampler=sampler, sampler_model=sampler_model,
            dataset=dataset, device=device, allow_other_scorer=allow_other_scorer, hit_threshold=hit_threshold,
            as_json=as_json,
        )  # fmt: skip
        return
    configs = {run: _config(run, flags, overrides or []) for run in chosen}
    if probe:
        from training.commands.evaluate_probe import probe_runs

        why = "--probe draws no samples and runs no scorer"
        _refuse_unused(why, {**of_drawing, **of_samples, "--dataset": None})
        _refuse_unused(why, {"--guidance-sweep": guidance_sweep, "--reference": references, "--tasks": tasks})
        _refuse_unused(why, of_tasks)
        probe_runs(configs, dataset=dataset, device=device, as_json=as_json)
        return
    if guidance_sweep is not None:
        from training.commands.evaluate_guidance import sweep_runs

        why = "draws each scale of the list, and judges by the run's own column"
        _refuse_unused(f"--guidance-sweep {why}", {**of_samples, "--tasks": tasks, **of_tasks})
        sweep_runs(
            configs,
            guidance_sweep,
            reference=_one_run(references),
            dataset=dataset,
            device=device,
            allow_other_scorer=allow_other_scorer,
            as_json=as_json,
        )
        return
    if references:
        from training.commands.evaluate_references import evaluate_references

        why = "--reference draws samples of the reference alone, as many as --set reference_samples=N"
        _refuse_unused(why, {**of_drawing, **of_samples, "--tasks": tasks, **of_tasks})
        evaluate_references(
            configs, references, model=reference_model, prompt=reference_prompt, device=device, as_json=as_json
        )
        return
    if tasks:
        from training.commands.evaluate_tasks import measure_runs

        _refuse_unused("--tasks draws no samples and reads no labelled text", {**of_drawing, **of_samples})
        measure_runs(
            configs,
            tasks,
            num_fewshot=num_fewshot,
            limit=task_limit,
            allow_code=allow_task_code,
            device=device,
            as_json=as_json,
        )
        return
    _refuse_unused("there is no task to measure (--tasks)", of_tasks)
    requests: list[EvaluationRequest] = []
    for run in chosen:
        judges = _judges(run, columns or [], scorers or [])
        # Each column has its own threshold, so --hit-threshold is for a single judge, or a scorer of no column.
        with_threshold = judges if len(judges) == 1 else [judge for judge in judges if judge.spec is not None]
        if hit_threshold is not None and len(with_threshold) != 1:
            raise UserError(
                "--hit-threshold is for one column or one scorer, but several are given. Give them one at a time."
            )
        requests += [
            EvaluationRequest(run, judge, hit_threshold if judge in with_threshold else None, configs[run])
            for judge in judges
        ]
    check_evaluations(requests, dataset=dataset, device=device, allow_other_scorer=allow_other_scorer)
    found = []
    for each in requests:
        run = each.run
        with StageProgress(str(run.path)) as progress:
            evaluation = evaluate_run(
                run,
                config=configs[run],
                dataset=dataset,
                device=device,
                allow_other_scorer=allow_other_scorer,
                judge=each.judge,
                hit_threshold=each.hit_threshold,
                progress=progress,
            )
        if as_json:
            shown = {"examples": _examples(evaluation.scored, show_text)} if show_text else {}
            if show_text and evaluation.guided_scored is not None:
                shown["guided_examples"] = _examples(evaluation.guided_scored, show_text)
            found.append({"path": str(run.path), **evaluation.report.model_dump(mode="json"), **shown})
        else:
            from training.commands.evaluate_view import print_report

            print_report(run, evaluation, show_text)
    if as_json:
        print_json({"runs": found})


def _refuse_unused(why: str, options: dict[str, Any]) -> None:
    """Refuse an option that would have no effect; None means that it was not given.

    Raises:
        UserError: names it and says why.
    """
    for name, value in options.items():
        if value is not None:
            raise UserError(f"{name} has no effect here: {why}. Leave it out.")


def _one_run(references: list[str] | None) -> "RunFolder | None":
    from training.runs.folder import RunFolder

    if not references:
        return None
    if len(references) > 1:
        raise UserError("--guidance-sweep measures the likelihood of samples under one --reference. Give one run.")
    return RunFolder.existing(references[0])


def _judges(run: "RunFolder", columns: list[str], scorers: list[str]) -> "list[Judge]":
    from scorers.registry import parse_scorers
    from training.evaluation.prepare import Judge

    facts = run.read_facts()
    if not columns and not scorers:
        # The run's own column first: it draws the samples that the others judge.
        columns = [facts.column, *facts.columns]
    return [
        *(Judge(column) for column in dict.fromkeys(columns)),
        *(Judge(name, spec) for name, spec in parse_scorers(scorers).items()),
    ]


def _examples(scored: "ScoredSamples", number: int) -> list[dict[str, Any]]:
    return [
        {
            "sample": index,
            "score": None if scored.reasons[index] else float(scored.scores[index]),
            "reason": scored.reasons[index],
            "text": scored.texts[index],
        }
        for index in scored.worst(number)
    ]


def _config(run: "RunFolder", flags: dict[str, Any], overrides: list[str]) -> "EvaluationConfig":
    from scorers.settings import load_settings
    from training.measuring_config import EvaluationConfig

    return load_settings(
        EvaluationConfig,
        defaults=run.read_config().evaluation.model_dump(),
        flags=flags,
        overrides=[override.removeprefix("evaluation.") for override in overrides],
    )
