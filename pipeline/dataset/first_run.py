"""A first training run that suits a corpus and a machine: which command to type, and why that size."""

from dataclasses import dataclass

from pipeline.dataset.manifest import Manifest
from scorers.shell import quoted

# Of the paper; their hyperparameters are presets of `phf train`.
_TASKS = ("toxicity", "pii", "pep8")
# Repeating a text up to four times is nearly as good as new text (arXiv 2305.16264).
_EPOCHS = 4
# Of English and of code, by a tokenizer trained on them; fewer tokens may be no block of the smallest model.
_BYTES_A_TOKEN, _LEAST_TOKENS = 4, 256
_SECONDS = 3600
# What a step reaches on a core of a server, at the low end; small models do not use more than some cores.
_FLOPS_A_CORE, _MOST_CORES = 1e10, 16
# Updates that a run takes at least, where its batch can be made so small.
_STEPS, _LARGEST_BATCH = 200, 64
# Parameters outside the embedding tables, FLOPs a token with a vocabulary of 8,192, tokens a block.
SIZES: dict[str, tuple[float, float, int]] = {
    "nano": (1.0e5, 3.9e6, 128),
    "tiny": (7.9e5, 1.3e7, 256),
    "mini": (4.7e6, 4.6e7, 512),
    "small": (2.5e7, 2.3e8, 1024),
    "gpt2": (8.5e7, 6.6e8, 1024),
}


@dataclass(frozen=True)
class FirstRun:
    """A size of model, tokens to train on in all, and blocks a step."""

    model: str
    num_tokens: int
    batch_size: int

    @property
    def options(self) -> str:
        """As options of `phf train`; a batch as large as the presets' is left out."""
        tokens = f"{self.num_tokens:.1e}".replace("e+0", "e").replace("e+", "e")
        batch = f" --batch-size {self.batch_size}" if self.batch_size < _LARGEST_BATCH else ""
        return f"--model {self.model} --num-tokens {tokens}{batch}"


def first_run(tokens: float, flops: float) -> FirstRun:
    """The largest model that sees as many tokens as it has parameters in four epochs and in an hour.

    Args:
        tokens: of the corpus.
        flops: floating-point operations a second that training reaches.
    """
    seen = {name: min(_EPOCHS * tokens, _SECONDS * flops / cost) for name, (_, cost, _) in SIZES.items()}
    model = [name for name, (parameters, *_) in SIZES.items() if name == "nano" or seen[name] >= parameters][-1]
    batch = 1
    while batch < _LARGEST_BATCH and 2 * batch * _STEPS * SIZES[model][2] <= seen[model]:
        batch *= 2
    return FirstRun(model, int(seen[model]), batch)


def cpu_flops(cores: int) -> float:
    """Floating-point operations a second that training reaches on so many cores, by a cautious rule of thumb."""
    return _FLOPS_A_CORE * min(cores, _MOST_CORES)


def tokens_of(manifest: Manifest, column: str) -> float:
    """About how many tokens the text is that has scores in a column."""
    share = manifest.thresholds[column].sentences / max(manifest.sentences, 1)
    return share * manifest.bytes_text / _BYTES_A_TOKEN


def train_command(manifest: Manifest, dataset: str, output: str | None = None, *, cores: int = 1) -> str | None:
    """The command of a first run, conditional where sentences of both tags are there; None where none can be trained.

    Args:
        manifest: of a sealed dataset.
        dataset: its place, as a user types it.
        output: folder of the run; by default named after the objective.
        cores: of the machine that trains.
    """
    scored = [column for column, threshold in manifest.thresholds.items() if threshold.sentences]
    task = next((task for task in (*_TASKS, *scored) if task in scored), None)
    if task is None or tokens_of(manifest, task) < _LEAST_TOKENS:
        return None
    tags = manifest.thresholds[task]
    objective = "conditional" if 0 < tags.aligned < tags.sentences else "mle"
    run = first_run(tokens_of(manifest, task), cpu_flops(cores))
    return (
        f"phf train {quoted(dataset)} --task {quoted(task)} --objective {objective} {run.options} "
        f"--output {quoted(output or f'runs/{objective}')}"
    )
