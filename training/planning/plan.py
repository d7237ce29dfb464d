"""Print the plan of a run before step 0, or the forecast of `phf train --plan`."""

from typing import Any

from scorers.amounts import format_count, format_duration, format_size
from training.config import TrainingConfig
from training.model.counting import describe_experts, dimensions
from training.model.language_model import LanguageModel
from training.model.router_loss import describe_router
from training.planning.cost_warnings import cost_warning
from training.planning.forecast import Forecast
from training.planning.resolved_run import ResolvedRun
from training.runs.facts import MixedFacts, PhaseFacts, RunFacts, TargetFacts


def print_plan(
    console: Any,
    run: ResolvedRun,
    facts: RunFacts,
    model: LanguageModel,
    world: Any,
    expected: str,
) -> None:
    """Print the plan as tables; `expected` is the line about its duration."""
    console.print()
    _table(console, f"Run: {facts.objective} on {facts.task}", _run_rows(run, facts, model, world, expected))
    _table(console, "Data", _data_rows(facts))
    if facts.mixture:
        _table(console, "Mixture", {f"{number}": _mixed_row(each) for number, each in enumerate(facts.mixture, 1)})
    if facts.phases:
        _table(console, "Phases", dict(map(_phase_row, facts.phases)))
    _table(console, "Configuration", _config_rows(run.config.model_dump(mode="json")))


def print_forecast(console: Any, found: Forecast) -> None:
    """Print a forecast as tables."""
    shape, horizon, machine = found.job.shape, found.run.horizon, found.machine
    console.print()
    _table(
        console,
        f"Plan: {found.run.config.objective.name}, {shape.name}, on {horizon.ranks} x {machine.name}",
        {
            "model": f"{format_count(shape.layers, 'layer')}, width {shape.width}, {_heads(shape.heads)}"
            f"{shape.architecture}" + (", value head" if shape.value_head else ""),
            "parameters": f"{shape.parameters:,} ({shape.parameters_embedding:,} of them in embedding tables; "
            f"a vocabulary of {shape.vocabulary:,})"
            + (f"; {shape.parameters_active:,} compute a token" if shape.parameters_active < shape.parameters else ""),
            "batch": f"{horizon.micro_batch_size} micro x {horizon.accumulation} accumulation x "
            f"{format_count(horizon.ranks, 'rank')} = {format_count(horizon.batch_size, 'block')} = "
            f"{format_count(horizon.tokens_per_step, 'token')} a step",
            "horizon": f"{format_count(horizon.steps, 'step')}, {format_count(horizon.tokens, 'token')}: "
            f"{horizon.tokens / shape.parameters:.3g} a parameter"
            + ("" if found.epochs is None else f", about {found.epochs:,.3g} epochs over the dataset"),
            "engine": f"DeepSpeed ZeRO {found.job.layout.zero_stage}, {found.run.precision}"
            + (", activation checkpointing" if found.job.checkpointing else ""),
        },
    )
    _table(console, f"Memory of a rank, {'fits' if found.fits else 'DOES NOT FIT'}", _memory_rows(found))
    _table(console, "Time", _time_rows(found))
    warning = cost_warning(found.total_seconds, found.epochs, found.tokens or 0, machine, horizon.ranks)
    if warning:
        console.print(warning, style="bold yellow", markup=False, soft_wrap=True)


def _memory_rows(found: Forecast) -> dict[str, str]:
    memory = found.memory
    parts = {
        "weights": memory.weights,
        "optimiser": memory.optimizer,
        "gradients": memory.gradients,
        "activations": memory.activations,
        "loss": memory.loss,
        "buckets": memory.buckets,
        "allocator": memory.allocator,
        "copy to write": memory.copy,
    }
    rows = {name: format_size(value) for name, value in parts.items() if value}
    rows["peak"] = (
        f"{format_size(memory.total)} of {format_size(found.machine.memory)}, of which a tenth should stay free"
    )
    if memory.main:
        rows["main memory"] = format_size(memory.main)
    if found.remedies:
        rows["would fit"] = "; or ".join(found.remedies)
    rows["checkpoints"] = (
        f"{format_size(found.checkpoint)} each, at most {found.checkpoints_kept} on disk: "
        f"{format_size(found.checkpoint * found.checkpoints_kept)}"
    )
    return rows


def _time_rows(found: Forecast) -> dict[str, str]:
    seconds, machine = found.seconds, found.machine
    facts = found.facts()
    reached = (
        f"{machine.utilisation:.0%} of it reached, as given"
        if machine.utilisation is not None
        else f"{facts['mfu']:.0%} of it reached, matrix products and activations at "
        f"{machine.memory_bandwidth / 1e9:,.0f} GB/s together"
    )
    return {
        "a step": f"{seconds.total:.3g} s: model {seconds.compute:.3g}, update {seconds.update:.3g}, "
        f"communication {seconds.communication:.3g}",
        "total": f"{format_duration(facts['total_seconds'])} at {facts['tokens_per_second']:,.0f} tokens/s",
        "assumed": f"{machine.flops / 1e12:,.3g} TFLOP/s a rank at best, {reached}; "
        f"{machine.link_bandwidth / 1e9:,.3g} GB/s between ranks, none of it hidden",
    }


def _table(console: Any, title: str, rows: dict[str, str]) -> None:
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows.items():
        made.add_row(name, value)
    console.print(made)
    console.print()


def _run_rows(run: ResolvedRun, facts: RunFacts, model: LanguageModel, world: Any, expected: str) -> dict[str, str]:
    horizon, network = facts.horizon, facts.model
    size, experts = dimensions(model.causal), describe_experts(model)
    head = ", value head" if network.value_head else ""
    training = run.config.training
    flops = network.flops_per_token * horizon.tokens
    return {
        "model": f"{network.name}: {format_count(size.layers, 'layer')}, width {size.width}, "
        f"{_heads(size.heads)}{type(model.causal).__name__}{head}",
        "parameters": f"{network.parameters:,} ({network.parameters_embedding:,} of them in embedding tables)",
        **({} if experts is None else {"experts": f"{experts} compute a token; {describe_router(model)}"}),
        "FLOPs": f"{network.flops_per_token:.3g} a token, {flops:.3g} in total",
        "batch": f"{horizon.micro_batch_size} micro x {horizon.accumulation} accumulation x "
        f"{format_count(horizon.ranks, 'rank')} = {format_count(horizon.batch_size, 'block')} = "
        f"{format_count(horizon.batch_size * network.context_length, 'token')} a step",
        "horizon": f"{format_count(horizon.steps, 'step')}, {format_count(horizon.tokens, 'token')}: "
        f"{horizon.tokens_per_parameter:.3g} a parameter, {horizon.epochs:.3g} epochs over the stream",
        "expected": expected,
        "learning rate": f"{training.learning_rate:g}, {training.schedule}, "
        f"warm-up {_warmup(training, horizon.warmup_steps or 0)}, "
        f"to {training.min_learning_rate_ratio:g} of the peak",
        "validation": _validation(facts, training),
        "engine": f"DeepSpeed ZeRO {training.zero_stage}, {run.precision}, {world.device.type} x {world.size}",
        "output": run.config.output,
    }


def _warmup(training: TrainingConfig, steps: int) -> str:
    shown = format_count(steps, "step")
    return shown if training.warmup_steps is not None else f"{training.warmup_ratio:.3g} of the steps ({shown})"


def _validation(facts: RunFacts, training: TrainingConfig) -> str:
    found = facts.validation
    if found is None:
        return "none" + (" (training.validate_every=0)" if training.validate_every == 0 else ": nothing is held out")
    held_out = facts.stream.get("documents_left_out", {}).get("held_out", found.documents)
    return (
        f"every {format_count(found.every, 'step')} and at the last: {format_count(found.tokens, 'token')} of "
        f"{found.documents:,} of {format_count(held_out, 'held-out document')}, "
        f"about {found.share_of_time:.1%} of the time"
    )


def _heads(heads: int | None) -> str:
    return "" if heads is None else f"{format_count(heads, 'head')}, "


def _data_rows(facts: RunFacts) -> dict[str, str]:
    stream, tokenizer = facts.stream, facts.tokenizer
    left_out = {name: count for name, count in stream.get("documents_left_out", {}).items() if count}
    documents = stream.get("documents", 0)
    rows = {
        "dataset": f"{facts.dataset.uri}, generation {facts.dataset.generation}, column {facts.column} "
        f"({facts.scorer.fingerprint})",
        "tokenizer": f"{tokenizer.name}: {tokenizer.vocab_size:,} entries"
        + (f", control tokens {tokenizer.added_ids}" if tokenizer.added_ids else ""),
        "documents": f"{stream.get('documents_used', 0):,} of {documents:,}"
        + "".join(
            f"; {name.replace('_', ' ')} {count:,} ({count / documents:.1%})" for name, count in left_out.items()
        ),
        "stream": f"{stream.get('tokens', 0):,} tokens"
        + (f", of them {stream['tokens_hidden']:,} hidden" if "tokens_hidden" in stream else ""),
    }
    if facts.sentence_threshold is not None and stream.get("sentences"):
        rows["sentences"] = (
            f"{stream['sentences']:,}, of them {stream['sentences_aligned'] / stream['sentences']:.1%} aligned "
            f"(score <= {facts.sentence_threshold.value:g})"
        )
    if facts.threshold is not None:
        rows["threshold"] = f"{facts.threshold.value:g} ({facts.threshold.origin})"
    if facts.targets is not None:
        rows |= _target_rows(facts.targets)
    tags = stream.get("tags") or {}
    sentences = sum(value for value in tags.values() if isinstance(value, int))
    if sentences:
        rows["tags"] = ", ".join(
            f"{name} {count:,} ({count / sentences:.1%})" for name, count in tags.items() if isinstance(count, int)
        )
    return rows


def _target_rows(targets: TargetFacts) -> dict[str, str]:
    moments = [
        f"{each.feature} from {each.before:.6g} to {each.target:g}"
        + (" (others left out)" if each.weight is None else f" (lambda {each.weight:.4g})")
        for each in targets.moments
    ]
    return {
        "targets": ", ".join(moments),
        "weights": f"{targets.least_weight:.3g} to {targets.greatest_weight:.3g}, mean 1; effective sample size "
        f"{targets.effective_sentences:,.0f} of {targets.sentences:,} sentences ({targets.effective_share:.1%})",
    }


def _mixed_row(mixed: MixedFacts) -> str:
    stream, threshold = mixed.stream, mixed.threshold
    return (
        f"{mixed.share:.3g} of the blocks from {mixed.uri}: {stream['documents_used']:,} documents, "
        f"{stream['tokens']:,} tokens, {mixed.epochs:.3g} epochs; column {mixed.column} ({mixed.scorer.fingerprint})"
        + ("" if threshold is None else f", threshold {threshold.value:g} ({threshold.origin})")
    )


def _phase_row(phase: PhaseFacts) -> tuple[str, str]:
    return phase.name, (
        f"from step {phase.first_step:,}: {format_count(phase.steps, 'step')}, {format_count(phase.tokens, 'token')}, "
        f"of {format_count(phase.documents, 'document')} with {phase.tokens_in_stream:,}"
    )


def _config_rows(values: dict[str, Any]) -> dict[str, str]:
    rows = {}
    for section, content in values.items():
        if isinstance(content, dict):
            rows[section] = ", ".join(f"{key}={value}" for key, value in content.items() if value not in (None, {}, []))
    return rows
