"""The section that says what was compared: data, scorer, tokenizer, sampling and held-out text."""

from pathlib import Path

from scorers.amounts import format_count
from training.comparison.load import Comparison, mixture
from training.comparison.run import LoadedRun
from training.comparison.section import Finding, Section
from training.comparison.tables import most_tokens
from training.data.cache import trained_on_dataset


def about_section(comparison: Comparison) -> Section:
    """The data, the scorer, and how samples were drawn."""
    return Section("What was compared", findings=[Finding(title, [text]) for title, text in _facts(comparison)])


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    run = comparison.baseline
    facts, report = run.facts, run.report
    options = ", ".join(f"{key}={value}" for key, value in report.scorer.entry.options.items() if value is not None)
    held_out = report.held_out
    threshold = facts.sentence_threshold if report.column == facts.column else None
    return [
        (
            "Dataset",
            f"{facts.dataset.uri}, generation {facts.dataset.generation}, "
            f"{format_count(facts.dataset.rows, 'document')} ({facts.dataset.fingerprint[:12]})",
        ),
        *([("Mixture", mixture(run))] if facts.mixture else []),
        ("Scorer", f"{report.scorer.entry.kind}{f' ({options})' if options else ''}, {report.scorer.fingerprint}"),
        (
            "Sentence threshold",
            f"{threshold.value:g} ({threshold.origin.partition(':')[0]})"
            if threshold
            else f"{report.samples.hit_threshold:g}",
        ),
        ("Tokenizer", f"{_tokenizer(run)}, {facts.tokenizer.fingerprint[:12]}"),
        (
            "Sampling",
            f"temperature {report.config.temperature:g}, top-p {report.config.top_p:g}, at most "
            f"{most_tokens(comparison)} tokens, seed {report.config.seed}; conditional models "
            f"after {_best_tags(comparison)}{_guidance(comparison)}; control tokens banned; no dropout",
        ),
        (
            "Held-out text",
            f"{format_count(held_out.documents, 'document')}, {format_count(held_out.bytes, 'byte')}, "
            f"{format_count(held_out.tokens, 'token')}; read "
            f"{held_out.context_length} at once; token frequencies alone need "
            f"{held_out.unigram_bits_per_byte.value:.3f} bits per byte"
            if held_out
            else "none",
        ),
    ]


def _best_tags(comparison: Comparison) -> str:
    return (
        " or ".join(sorted({run.facts.best_tag for run in comparison.runs if run.facts.conditional})) or "<|aligned|>"
    )


def _guidance(comparison: Comparison) -> str:
    guided = [run for run in comparison.sampled if run.guidance is not None]
    if not guided:
        return ""
    scales = sorted({f"{run.guidance:g}" for run in guided})
    tags = sorted({run.facts.worst_tag for run in guided})
    return f", and also guided by {' or '.join(scales)} away from {' or '.join(tags)}"


def _tokenizer(run: LoadedRun) -> str:
    given = run.config.data.tokenizer
    if given is None or trained_on_dataset(run.config.data):
        return f"byte-level BPE trained on the dataset, at most {run.config.data.vocab_size:,} entries"
    # Show only the name of a folder: its location on this machine means nothing to readers.
    return f"{Path(given).name if Path(given).is_absolute() else given}, {run.facts.tokenizer.vocab_size:,} entries"
