"""`phf generate`: sample from a trained model."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from scorers.console import print_json, set_up_logs
from scorers.errors import UserError
from training.options import Device


def generate(
    model: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run of `phf train`, or an exported model.")],
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="Text to continue; by default empty.")] = "",
    tag: Annotated[
        str | None,
        typer.Option(
            "--tag",
            metavar="NAME",
            help="Control token before the prompt: aligned, misaligned, quantile_K, or none; by default an export's "
            "own, or the best.",
        ),
    ] = None,
    guidance: Annotated[
        float,
        typer.Option(
            "--guidance", min=0, metavar="G", help="Guide by G away from the worst control token; 1 for none."
        ),
    ] = 1.0,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=1, max=100_000, help="Number of samples.")] = 3,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, max=1_000_000, help="Maximum tokens per sample.")
    ] = 128,
    temperature: Annotated[float, typer.Option(min=0.01, help="Sampling temperature.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.0001, max=1, help="Nucleus of the sampling.")] = 0.9,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the sampling.")] = 0,
    step: Annotated[
        int | None,
        typer.Option("--step", min=1, metavar="N", help="The checkpoint of this step of a run.", show_default=False),
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="A run's best checkpoint, by training.best_metric.")] = False,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the samples as JSON, with their exact text.")] = False,
) -> None:
    """Print samples of a trained model.

    A prompt is placed as text was in training: after the token that begins a
    document and, for a conditional model, after a control token. Control tokens
    are never generated. For a run in training, the newest checkpoint is used.

    Example: phf generate runs/conditional --prompt "How to" --guidance 2
    """
    set_up_logs()
    if step is not None and best:
        raise UserError("--step and --best exclude each other: give one of them.")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        # Bytes that are not UTF-8 on the command line are lone surrogates here.
        raise UserError(f"--prompt is not UTF-8, at its character {error.start + 1:,}. Give it as UTF-8.") from None
    from scorers.settings import load_settings
    from scorers.terminal import Terminal
    from training.evaluation.checks import torch_device
    from training.evaluation.generating import choose_tag, exported, open_writer, write
    from training.measuring_config import EvaluationConfig

    sampling = {"num_samples": num_samples, "max_new_tokens": max_new_tokens, "temperature": temperature}
    sampling |= {"top_p": top_p, "seed": seed, "guidance": guidance}
    config = load_settings(EvaluationConfig, flags=sampling)
    place = torch_device(device)
    with tempfile.TemporaryDirectory(prefix="phf-generate-") as scratch:
        folder, of_step = exported(Path(model), step, best=best, scratch=Path(scratch))
        writer = open_writer(folder, place)
        chosen = choose_tag(writer.tags, tag, guidance, writer.condition)
        found = write(writer, prompt, chosen, config)
    if as_json:
        samples = zip(found.texts, found.tokens, found.ended, strict=True)
        print_json(
            {
                "model": model,
                "step": of_step,
                "prompt": prompt,
                "prompt_ids": found.prompt_ids,
                "tag": chosen,
                "guidance": guidance,
                "seed": seed,
                "max_new_tokens": found.max_new_tokens,
                "samples": [{"text": text, "tokens": tokens, "ended": ended} for text, tokens, ended in samples],
            }
        )
        return
    console = Terminal()
    for number, (text, ended) in enumerate(zip(found.texts, found.ended, strict=True), 1):
        cut = "" if ended else f", cut at {found.max_new_tokens} tokens"
        console.print(f"[bold]sample {number}[/bold]{cut}", markup=True)
        console.print(f"{prompt}{text}\n", soft_wrap=True)
