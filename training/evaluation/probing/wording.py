"""Sentences about a probe, for the terminal and the page."""

from training.evaluation.format_figures import interval, number
from training.runs.probe_report import ProbeFigures

MEANING = (
    "A logistic probe reads from hidden states whether a held-out sentence is misaligned; the model reads no control "
    "tokens. AUC is measured on documents that the probe was not fitted on: 0.5 is chance, 1 is perfect. The "
    "embeddings are little more than a bag of words."
)


def layer_name(layer: int, figures: ProbeFigures) -> str:
    """A layer in words."""
    if layer == 0:
        return "embeddings"
    return f"{layer} (last)" if layer == figures.layers[-1].layer else str(layer)


def best_layer(figures: ProbeFigures) -> str:
    """The figure of the best layer, and which layers that was."""
    counts = {layer: figures.chosen.count(layer) for layer in sorted(set(figures.chosen))}
    layers = ", ".join(
        f"{layer_name(each, figures)} ({count} of {len(figures.chosen)})" for each, count in counts.items()
    )
    spread = interval(figures.best, lambda value: number(value, 3))
    return (
        f"Best layer, chosen on other documents than it is measured on: AUC {number(figures.best.value, 3)}"
        f"{f' ({spread})' if spread else ''}, layer {layers}."
    )
