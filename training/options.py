"""Command-line options of `phf train` for settings, each with the key that it sets."""

from typing import Annotated

import typer

from scorers.flags import Sets

Dataset = Annotated[
    str | None,
    typer.Argument(help="Labelled dataset: the --output of `phf label`, a folder or a URI.", show_default=False),
    Sets("data.dataset"),
]
Output = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="DIR", help="Folder of the run. An existing run resumes."),
    Sets("output"),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task", metavar="NAME", help="toxicity, pii or pep8 take the paper's presets; any other score column."
    ),
    Sets("task"),
]
Objective = Annotated[
    str | None,
    typer.Option(
        "--objective",
        metavar="NAME",
        help="mle, filtering, conditional, unlikelihood, unlikelihood_soft, rwr or awr. (default: mle)",
        show_default=False,
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
DeepSpeed = Annotated[
    str | None,
    typer.Option("--deepspeed", metavar="FILE", help="A DeepSpeed JSON of your own, merged under the settings."),
    Sets("training.deepspeed"),
]
