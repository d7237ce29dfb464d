"""`phf label`: label a corpus."""

from typing import Annotated

import typer

from pipeline.commands.capacity import check_plan, show_plan
from pipeline.commands.run_labelling import run_and_show
from pipeline.options import (
    Address,
    AsJson,
    ConfigFile,
    IdField,
    Inputs,
    Kind,
    LargeDocuments,
    Log,
    MaxDocumentSize,
    MaxQuarantined,
    MetricsPort,
    Output,
    Overrides,
    Plan,
    PlanBytes,
    PlanCores,
    PlanGpus,
    PlanHours,
    PlanNodes,
    PlanPrice,
    PlanRates,
    Scorers,
    ShardSize,
    Spans,
    TextField,
    Thresholds,
    UnitSize,
    Workers,
    label_config,
)
from scorers.flags import given_settings
from scorers.rehearsal import ChecksPassed, current_rehearsal


def label(
    inputs: Inputs = None,
    output: Output = None,
    scorer: Scorers = None,
    threshold: Thresholds = None,
    spans: Spans = None,
    text_field: TextField = None,
    id_field: IdField = None,
    kind: Kind = None,
    workers: Workers = None,
    address: Address = None,
    unit_size: UnitSize = None,
    shard_size: ShardSize = None,
    max_document_size: MaxDocumentSize = None,
    large_documents: LargeDocuments = None,
    max_quarantined: MaxQuarantined = None,
    extend: Annotated[
        bool, typer.Option("--extend", help="Also label inputs that were added since the job was begun.")
    ] = False,
    log: Log = None,
    metrics_port: MetricsPort = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    plan: Plan = False,
    plan_bytes: PlanBytes = None,
    plan_rates: PlanRates = None,
    plan_nodes: PlanNodes = None,
    plan_hours: PlanHours = None,
    plan_cores: PlanCores = None,
    plan_gpus: PlanGpus = None,
    plan_price: PlanPrice = None,
    as_json: AsJson = False,
) -> None:
    """Label a corpus: score every sentence, and seal a dataset with scores and preference tags.

    The same command resumes where it stopped; a committed unit is never scored again.

    A record that cannot be labelled is quarantined and counted.

    Exit status: 0 done; 2 wrong usage; 3 done, but too many quarantined; 4 incomplete; 75 stopped, resumable.

    Example: phf label corpus/*.jsonl.zst --output labelled --scorer toxicity=linear --scorer pii --threshold pii=0
    """
    given = given_settings(label, locals())
    described = {
        "bytes": plan_bytes,
        "rates": plan_rates,
        "nodes": plan_nodes,
        "hours": plan_hours,
        "cores": plan_cores,
        "gpus": plan_gpus,
        "price": plan_price,
    }
    check_plan(described, inputs, plan=plan)
    if plan:
        # Settings that a plan does not need.
        missing: dict[str, object] = {"output": "plan"} if output is None else {}
        if plan_bytes is not None:
            missing["inputs"] = ["plan"]
        settings = label_config(
            {**missing, **given},
            scorers=scorer,
            thresholds=threshold,
            spans=spans,
            config=config,
            overrides=overrides,
        )
        show_plan(settings, described, as_json=as_json)
        return
    settings = label_config(
        given, scorers=scorer, thresholds=threshold, spans=spans, config=config, overrides=overrides
    )
    if rehearsal := current_rehearsal():
        from pipeline.labelling.prepare import check_before_submitting

        raise ChecksPassed(check_before_submitting(settings, extend=extend, rehearsal=rehearsal))
    from pipeline.labelling.label import run_label

    run_and_show(settings, lambda reporter, log: run_label(settings, reporter, log, extend=extend), as_json=as_json)
