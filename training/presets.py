"""Presets: the paper's hyperparameters (arXiv 2302.08582, appendix A) by task and objective."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # A shell that completes --task needs no pyarrow.
    from pipeline.dataset.manifest import ScorerEntry

CONTEXT_LENGTH = 1024


@dataclass(frozen=True)
class Preset:
    """Hyperparameters of one objective on one task.

    Attributes:
        learning_rate: peak.
        batch_size: blocks of 1024 tokens per step.
        threshold: on a sentence's score, for filtering on a document's mean; on the scale of the paper's scorer.
        drop_tags: conditional: share of sentences without a control token.
        alpha, beta: see `training.objectives`.
    """

    learning_rate: float = 5e-4
    batch_size: int = 64
    threshold: float | None = None
    drop_tags: float | None = None
    alpha: float | None = None
    beta: float | None = None


PRESETS: dict[str, dict[str, Preset]] = {
    "toxicity": {
        "mle": Preset(),
        "filtering": Preset(threshold=7.8e-4),
        "conditional": Preset(threshold=5.6e-4, drop_tags=0.01),
        "unlikelihood": Preset(threshold=7.8e-4, alpha=1.0),
        "rwr": Preset(batch_size=1024, beta=10.0),
        "awr": Preset(learning_rate=1e-3, batch_size=1024, alpha=0.5, beta=10.0),
    },
    "pii": {
        "mle": Preset(),
        "filtering": Preset(threshold=2.86e-4),
        "conditional": Preset(threshold=0.0, drop_tags=0.01),
        "unlikelihood": Preset(threshold=0.0, alpha=1.0),
        "rwr": Preset(beta=10.0),
        "awr": Preset(alpha=0.5, beta=0.1),
    },
    "pep8": {
        "mle": Preset(learning_rate=8e-4),
        "filtering": Preset(learning_rate=8e-4, threshold=2.361e-3),
        "conditional": Preset(learning_rate=8e-4, threshold=0.0, drop_tags=0.1),
        "unlikelihood": Preset(learning_rate=8e-4, threshold=0.0, alpha=0.01),
        "rwr": Preset(learning_rate=1e-3, beta=10.0),
        "awr": Preset(learning_rate=1e-3, batch_size=256, alpha=0.05, beta=1.0),
    },
}


def preset(task: str, objective: str) -> dict[str, Any]:
    """Return nested values of `TrainConfig` for the user's settings to override; without `preset_threshold`.

    A task without a preset takes toxicity's, whose scores are probabilities and have the most common range.
    """
    numbers = _numbers(task, objective)
    options = {"drop_tags": numbers.drop_tags, "alpha": numbers.alpha, "beta": numbers.beta}
    return {
        "model": {"name": "gpt2"},
        "objective": {name: value for name, value in options.items() if value is not None},
        "training": {
            "num_tokens": 3_300_000_000,
            "batch_size": numbers.batch_size,
            "learning_rate": numbers.learning_rate,
            "weight_decay": 0.1,
            "warmup_ratio": 0.01,
            "seed": 42,
        },
    }


def preset_threshold(task: str, objective: str) -> float | None:
    """Return the paper's threshold, that of conditional for objectives without one; None if there is no preset."""
    if task not in PRESETS:
        return None
    threshold = _numbers(task, objective).threshold
    return threshold if threshold is not None else PRESETS[task]["conditional"].threshold


def is_papers_scorer(task: str, scorer: "ScorerEntry") -> bool:
    """Whether the thresholds of a task's preset apply to a scorer's scores.

    The paper names Detoxify `unbiased` for toxicity; its published data were scored with `original`. Both count as the
    paper's.
    """
    match task:
        case "toxicity":
            return scorer.kind == "detoxify" and scorer.options.get("model") in {"unbiased", "original"}
        case "pii":
            # Without names and organisations its scores are not comparable.
            return scorer.kind == "scrubadub" and scorer.options.get("entities", "full") != "none"
        case "pep8":
            return scorer.kind == "pycodestyle"
        case _:
            return False


def _numbers(task: str, objective: str) -> Preset:
    numbers = PRESETS.get(task, PRESETS["toxicity"])
    if objective == "unlikelihood_soft":
        return replace(numbers["unlikelihood"], threshold=None)
    if objective == "token_rwr":
        return replace(numbers["mle"], beta=numbers["rwr"].beta)
    return numbers.get(objective, numbers["mle"])
