"""Suggest the command of a first training run, sized for a corpus and a machine."""

from dataclasses import dataclass

from pipeline.dataset.manifest import Manifest
from scorers.shell import quoted

# The tasks of the paper, whose hyperparameters are presets of `phf train`.
_TASKS = ("toxicity", "pii", "pep8")
# Repeating a text up to four times is nearly as good as new text (arXiv 2305.16264).
_EPOCHS = 4
# Bytes per token of English and code, with a tokenizer trained on them; fewer tokens may not fill one block of the
# smallest model.
_BYTES_A_TOKEN, _LEAST_TOKENS = 4, 256
_SECONDS = 3600
# FLOP/s per core of a server, at the low end; small models use only a few cores.
_FLOPS_A_CORE, _MOST_CORES = 1e10, 16
# Least number of updates of a run, if its batch can be made small enough; the batch of the presets.
_STEPS, _LARGEST_BATCH = 200, 64
# Parameters outside the embedding tables, FLOPs per token with a vocabulary of 8,192, tokens per block.
SIZES: dict[str, tuple[float, float, int]] = {
    "nano": (1.0e5, 3.9e6, 128),
    "tiny": (7.9e5, 1.3e7, 256),
    "mini": (4.7e6, 4.6e7, 512),
    "small": (2.5e7, 2.3e8, 1024),
    "gpt2": (8.5e7, 6.6e8, 1024),
}


@dataclass(frozen=True)
class FirstRun:
    """The size of the model, the total number of training tokens, and blocks per step."""

    model: str
    num_tokens: int
    batch_size: int

    @property
    def options(self) -> str:
        """The options for `phf train`, without --batch-size if it equals that of the presets."""
        tokens = f"{self.num_tokens:.1e}".replace("e+0", "e").replace("e+", "e")
        batch = f" --batch-size {self.batch_size}" if self.batch_size < _LARGEST_BATCH else ""
        return f"--model {self.model} --num-tokens {tokens}{batch}"


def first_run(tokens: float, flops: float) -> FirstRun:
    """Choose the largest model that sees as many tokens as it has parameters within four epochs and one hour.

    Args:
        tokens: tokens of the corpus.
        flops: FLOP/s that training reaches.
    """
    seen = {name: min(_EPOCHS * tokens, _SECONDS * flops / cost) for name, (_, cost, _) in SIZES.items()}
    model = [name for name, (parameters, *_) in SIZES.items() if name == "nano" or seen[name] >= parameters][-1]
    batch = 1
    while batch < _LARGEST_BATCH and 2 * batch * _STEPS * SIZES[model][2] <= seen[model]:
        batch *= 2
    return FirstRun(model, int(seen[model]), batch)


def cpu_flops(cores: int) -> float:
    """A cautious estimate of the FLOP/s that training reaches on a number of cores."""
    return _FLOPS_A_CORE * min(cores, _MOST_CORES)


def estimate_tokens(manifest: Manifest, column: str) -> float:
    """Estimate the number of tokens of the text that has scores in a column."""
    share = manifest.thresholds[column].sentences / max(manifest.sentences, 1)
    return share * manifest.bytes_text / _BYTES_A_TOKEN


def train_command(manifest: Manifest, dataset: str, output: str | None = None, *, cores: int = 1) -> str | None:
    """The command of a first run, conditional if both tags occur; None if there is too little to train on.

    Args:
        manifest: the manifest of the dataset.
        dataset: its location, as a user types it.
        output: folder of the run; by default named after the objective.
        cores: cores of the machine that trains.
    """
    scored = [column for column, threshold in manifest.thresholds.items() if threshold.sentences]
    task = next((task for task in (*_TASKS, *scored) if task in scored), None)
    if task is None or estimate_tokens(manifest, task) < _LEAST_TOKENS:
        return None
    tags = manifest.thresholds[task]
    objective = "conditional" if 0 < tags.aligned < tags.sentences else "mle"
    run = first_run(estimate_tokens(manifest, task), cpu_flops(cores))
    return (
        f"phf train {quoted(dataset)} --task {quoted(task)} --objective {objective} {run.options} "
        f"--output {quoted(output or f'runs/{objective}')}"
    )
