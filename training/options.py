"""Command-line options of `phf train`, those that give a setting with its key, and options of several commands."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from scorers.flags import Sets


def _complete_task(incomplete: str) -> list[str]:
    # Each completion imports only when a shell asks for it: `phf` itself starts without these modules.
    from training.presets import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]


def _complete_objective(incomplete: str) -> list[str]:
    from training.config import ObjectiveName

    return [name for name in get_args(ObjectiveName) if name.startswith(incomplete)]


def _complete_model(incomplete: str) -> list[str]:
    from training.model.sizes import SIZES

    return [name for name in SIZES if name.startswith(incomplete)]


def _complete_place(incomplete: str) -> list[str]:
    from training.distributed.launch import LAUNCHERS

    return [name for name in LAUNCHERS if name.startswith(incomplete)]


Dataset = Annotated[
    str | None,
    typer.Argument(help="Labelled dataset: the --output of `phf label`, a folder or a URI.", show_default=False),
    Sets("data.dataset"),
]
MovedDataset = Annotated[
    str | None,
    typer.Option("--dataset", help="Where the labelled dataset is now, if it was moved since training."),
]
Device = Annotated[str, typer.Option("--device", help="Torch device; auto takes a GPU if there is one.")]
AllowOtherScorer = Annotated[
    bool,
    typer.Option(
        "--allow-other-scorer",
        help="Allow a scorer whose fingerprint differs from the dataset's; the report says so.",
    ),
]
Output = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="DIR", help="Folder of the run. An existing run resumes."),
    Sets("output"),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="toxicity, pii or pep8 take the paper's presets; any other score column.",
        autocompletion=_complete_task,
    ),
    Sets("task"),
]
Objective = Annotated[
    str | None,
    typer.Option(
        "--objective",
        metavar="NAME",
        help="mle, filtering, conditional, unlikelihood, unlikelihood_soft, rwr, token_rwr, awr or target. "
        "(default: mle)",
        show_default=False,
        autocompletion=_complete_objective,
    ),
    Sets("objective.name"),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="nano, tiny, mini, small, gpt2, gpt2-medium, gpt2-large, gpt2-xl, or the path or name of a "
        "Hugging Face causal language model. (default: gpt2)",
        show_default=False,
        autocompletion=_complete_model,
    ),
    Sets("model.name"),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        metavar="NAME",
        help="Hugging Face tokenizer: a folder, or a name on the hub. By default one is trained on the dataset.",
        show_default=False,
        rich_help_panel="Data",
    ),
    Sets("data.tokenizer"),
]
NumTokens = Annotated[
    str | None,
    typer.Option("--num-tokens", metavar="N", help="Total tokens to train on, such as 1e6.", show_default=False),
    Sets("training.num_tokens"),
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, metavar="N", help="Blocks per step, over all ranks.", show_default=False),
    Sets("training.batch_size"),
]
LearningRate = Annotated[
    float | None,
    typer.Option("--learning-rate", metavar="X", help="Peak learning rate.", show_default=False),
    Sets("training.learning_rate"),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", help="Seed of initialisation, order and dropped tags.", show_default=False),
    Sets("training.seed"),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        "--metrics-port",
        min=1,
        max=65535,
        metavar="PORT",
        help="Serve Prometheus metrics on rank 0 at 127.0.0.1:PORT; tracking.metrics_host is the address.",
        show_default=False,
    ),
    Sets("tracking.metrics_port"),
]
DeepSpeed = Annotated[
    str | None,
    typer.Option("--deepspeed", metavar="FILE", help="A DeepSpeed JSON of your own, merged under the settings."),
    Sets("training.deepspeed"),
]
InitFrom = Annotated[
    str | None,
    typer.Option(
        "--init-from",
        metavar="DIR",
        help="Start from the weights and the tokenizer of a finished run, or of a Hugging Face folder.",
        show_default=False,
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="NAME",
        help="Score column, if it is not named like the task. Repeat it to train on several with equal weights; "
        "data.columns takes other weights.",
        rich_help_panel="Data",
    ),
]
Mix = Annotated[
    list[str] | None,
    typer.Option(
        "--mix",
        metavar="DATASET=SHARE[:COLUMN]",
        help="Mix in another labelled dataset, such as code=0.3 for three tenths of all tokens, or "
        "code=0.3:pep8 if its score column has another name. Repeatable.",
        show_default=False,
        rich_help_panel="Data",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="YAML with the same settings as --set; options override it."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Any setting, such as training.warmup_ratio=0.02; overrides all else."
    ),
]
Ranks = Annotated[
    int,
    typer.Option(
        "--ranks",
        min=1,
        metavar="N",
        help="Processes to start; one per GPU if there are GPUs.",
        rich_help_panel="Ranks",
    ),
]
MaxRestarts = Annotated[
    int,
    typer.Option(
        "--max-restarts",
        min=0,
        metavar="N",
        help="How often to restart all ranks if one was killed or hung.",
        rich_help_panel="Ranks",
    ),
]
OriginStep = Annotated[
    int | None,
    typer.Option(
        "--step",
        min=1,
        metavar="N",
        help="With --init-from RUN: start from its checkpoint of this step, with its optimiser, its position in "
        "the data, and its settings where no others are given.",
        show_default=False,
        rich_help_panel="Continuing a run",
    ),
]
FromStep = Annotated[
    int | None,
    typer.Option(
        "--from-step",
        min=1,
        metavar="N",
        help="Go back to the run's checkpoint of this step, such as after a spike; what follows it is set aside. "
        "--learning-rate and other settings of the optimiser may change then.",
        show_default=False,
        rich_help_panel="Continuing a run",
    ),
]
SkipBatches = Annotated[
    int,
    typer.Option(
        "--skip-batches",
        min=0,
        max=1_000_000_000,
        metavar="N",
        help="With --from-step: leave out this many batches from there on.",
        rich_help_panel="Continuing a run",
    ),
]
Plan = Annotated[
    bool,
    typer.Option("--plan", help="Print the memory and time that the run would take, and exit.", rich_help_panel="Plan"),
]
PlanDevice = Annotated[
    str | None,
    typer.Option(
        "--plan-device",
        metavar="NAME",
        help="With --plan: a GPU, such as H100. (default: this machine)",
        rich_help_panel="Plan",
    ),
]
PlanMemory = Annotated[
    float | None,
    typer.Option(
        "--plan-memory",
        min=0.001,
        max=1e6,
        metavar="GB",
        help="With --plan: memory per device.",
        rich_help_panel="Plan",
    ),
]
PlanBandwidth = Annotated[
    float | None,
    typer.Option(
        "--plan-bandwidth",
        min=0.001,
        max=1e6,
        metavar="GB/S",
        help="With --plan: bandwidth between two ranks.",
        rich_help_panel="Plan",
    ),
]
PlanUtilisation = Annotated[
    float | None,
    typer.Option(
        "--plan-utilisation",
        min=0.001,
        max=1,
        metavar="X",
        help="With --plan: share of the peak FLOP/s that is reached.",
        rich_help_panel="Plan",
    ),
]
Place = Annotated[
    str,
    typer.Option(
        "--on",
        metavar="PLACE",
        autocompletion=_complete_place,
        help="Where to start ranks: here, or ray for the nodes of a Ray cluster.",
        rich_help_panel="Ranks",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="With --on ray, the cluster to join, such as auto or head:6379. (default: a local Ray of its own)",
        show_default=False,
        rich_help_panel="Ranks",
    ),
]
CpusPerRank = Annotated[
    int | None,
    typer.Option(
        "--cpus-per-rank",
        min=1,
        metavar="N",
        help="Cores that Ray reserves for each rank. (default: 1)",
        show_default=False,
        rich_help_panel="Ranks",
    ),
]
GpusPerRank = Annotated[
    int | None,
    typer.Option(
        "--gpus-per-rank",
        min=0,
        max=1,
        metavar="N",
        help="GPUs that Ray reserves for each rank, 0 or 1. (default: 1 where the cluster has any)",
        show_default=False,
        rich_help_panel="Ranks",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the facts of the run as JSON on stdout.")]
