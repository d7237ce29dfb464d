"""`make bench-gpu`: training steps of every objective on one GPU, beside a plain compiled loop on the same card.

    python -m tests.benchmarks.gpu_training [--sizes gpt2 gpt2-xl] [--output bench-gpu.json] ...

Each line of the table is measured in its own process, so that the memory of one does not affect another. The plain loop
is written by hand: the same network with its vocabulary padded to 50,304, bf16 autocast, torch.compile, fused AdamW,
the same batch split in the same way, and cross-entropy of all logits. The other lines are the engine of `phf train`:
ZeRO 1 with bf16 weights and a float32 copy of them, a loss that does not hold all logits, also compiled.

Tokens/s are for whole steps after the warm-up, including the transfer of data to the card. MFU is relative to the
card's peak in bf16 (`training.engine.timing`), with 6 N + 12 L d T FLOPs per token for both. The peak of memory is what
torch allocated.

Without a GPU the exit status is 2; `--device cpu --sizes nano` tries the benchmark itself.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.training_step import LOSSES

PLAIN = "plain loop"
OBJECTIVES = ("mle", "filtering", "conditional", "unlikelihood", "rwr", "awr")
VOCABULARY = 50257
MICRO_BATCHES = {"gpt2": 16, "gpt2-xl": 4}


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 done, 1 if a line failed for another reason than memory, 2 without the device."""
    options = _options(arguments)
    if options.case is not None:
        sys.stdout.write(json.dumps(measure(options, *json.loads(options.case))) + "\n")
        return 0
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write(
            "make bench-gpu needs a GPU that torch can use, and there is none: run it on a machine with a GPU and a "
            "CUDA build of torch, or try it with: python -m tests.benchmarks.gpu_training --device cpu --sizes nano\n"
        )
        return 2
    console = Console(highlight=False)
    found = []
    for size in options.sizes:
        for way in (PLAIN, *options.objectives):
            console.print(f"{size}, {way} …")
            found.append(_run_in_own_process(options, arguments, size, way))
        console.print(table([each for each in found if each["size"] == size], options))
    facts = {"device": _device_name(options.device), "torch": torch.__version__, "results": found}
    options.output.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    console.print(f"Written to {options.output}.")
    return 1 if any(each.get("error") not in (None, "out of memory") for each in found) else 0


def measure(options: argparse.Namespace, size: str, way: str) -> dict[str, Any]:
    """A line of the table: figures, or `error` if memory ran out."""
    import torch

    from training.distributed.world import World
    from training.engine.timing import peak_flops, peak_memory

    world = World.from_environment()
    world.start()
    if options.device == "cpu":
        world.device = torch.device("cpu")
    line: dict[str, Any] = {"size": size, "way": way}
    try:
        step, flops_per_token = (_plain if way == PLAIN else _ours)(options, size, way, world)
        seconds = [_seconds(step, world.device) for _ in range(options.warm_up + options.steps)][options.warm_up :]
    except torch.cuda.OutOfMemoryError:
        return {**line, "error": "out of memory"}
    memory = peak_memory(world.device)
    tokens = _blocks(options, size) * options.context / statistics.median(seconds)
    peak = peak_flops(world.device, "bf16" if world.device.type == "cuda" else "fp32")
    return {
        **line,
        "tokens_per_second": tokens,
        "mfu": tokens * flops_per_token / peak,
        "peak_memory": memory,
        "seconds": seconds,
    }


def table(lines: Sequence[dict[str, Any]], options: argparse.Namespace) -> Table:
    """The table of one size; the first line is the plain loop."""
    size, baseline = lines[0]["size"], lines[0].get("tokens_per_second")
    micro = _micro_batch(options, size)
    made = Table(
        *("way", "tokens/s", "of the plain loop", "MFU", "peak memory", "step, s (median, range)"),
        title=f"{size}: {micro} x {options.accumulation} blocks of {options.context} tokens, {options.steps} steps",
    )
    for line in lines:
        if "error" in line:
            made.add_row(line["way"], line["error"])
            continue
        seconds = line["seconds"]
        ratio = f"{line['tokens_per_second'] / baseline:.2f}" if baseline else ""
        made.add_row(
            line["way"],
            f"{line['tokens_per_second']:,.0f}",
            ratio,
            f"{line['mfu']:.1%}",
            f"{line['peak_memory'] / 1e9:.2f} GB",
            f"{statistics.median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})",
        )
    return made


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_training", description="Training steps on one GPU.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sizes", nargs="+", default=["gpt2", "gpt2-xl"])
    parser.add_argument("--objectives", nargs="*", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--micro-batch", type=int, help=f"blocks; by default {MICRO_BATCHES}, else 4")
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--attention", default="auto", help="model.attention of ours")
    parser.add_argument("--activation-checkpointing", action="store_true", help="for both")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="for both")
    parser.add_argument("--one-process", action="store_true", help="for all lines")
    parser.add_argument("--output", type=Path, default=Path("bench-gpu.json"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _run_in_own_process(
    options: argparse.Namespace, arguments: Sequence[str] | None, size: str, way: str
) -> dict[str, Any]:
    if options.one_process:
        return measure(options, size, way)
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = [sys.executable, "-m", "tests.benchmarks.gpu_training", *given, "--case", json.dumps([size, way])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"size": size, "way": way, "error": f"ended with status {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def _ours(options: argparse.Namespace, size: str, way: str, world: Any) -> tuple[Any, float]:
    from training.config import TrainingConfig
    from training.engine.engine import Engine, choose_precision
    from training.model.counting import flops_per_token
    from training.model.language_model import checkpoint_activations
    from training.objectives import build
    from training.schedule import plan_horizon

    config = TrainingConfig(
        num_tokens=10**12,
        batch_size=_blocks(options, size),
        micro_batch_size=_micro_batch(options, size),
        precision="bf16" if world.device.type == "cuda" else "fp32",
        compile=options.compile,
    )
    objective = build(way, **LOSSES.get(way, {}))
    model = _model(options, size, options.attention, value_head=objective.needs_values)
    flops = flops_per_token(model, options.context)
    if options.activation_checkpointing:
        checkpoint_activations(model)
    engine = Engine(
        model, config, plan_horizon(config, options.context, 1), world, choose_precision(config, world.device)
    )
    batch = _batch(options, size)
    return lambda: engine.train_step(batch, objective, 5e-4), flops


def _plain(options: argparse.Namespace, size: str, way: str, world: Any) -> tuple[Any, float]:
    import torch

    from training.engine.engine import parameter_groups
    from training.model.counting import flops_per_token

    model = _model(options, size, "sdpa")
    flops = flops_per_token(model, options.context)
    causal = model.causal.to(world.device).train()
    if options.activation_checkpointing:
        causal.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(parameter_groups(causal, 0.1), lr=5e-4, fused=True)
    # Use the padded product, as a network with a padded vocabulary does.
    body, weight = causal.base_model, causal.get_output_embeddings().weight

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        hidden = body(input_ids=ids, use_cache=False).last_hidden_state
        logits = torch.nn.functional.linear(hidden, weight)[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())

    compiled = torch.compile(loss_of) if options.compile else loss_of
    half = torch.autocast("cuda", torch.bfloat16, enabled=world.device.type == "cuda")
    batch = _batch(options, size)

    def step() -> None:
        for part in torch.from_numpy(batch.input_ids).split(_micro_batch(options, size)):
            with half:
                loss = compiled(part.to(world.device, non_blocking=True))
            (loss / options.accumulation).backward()
        torch.nn.utils.clip_grad_norm_(causal.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, flops


def _model(options: argparse.Namespace, size: str, attention: str, *, value_head: bool = False) -> Any:
    import torch

    from training.config import ModelConfig
    from training.model.language_model import build_model
    from training.model.vocabulary import Vocabulary

    torch.manual_seed(0)
    network = ModelConfig(name=size, attention=attention)
    vocabulary = Vocabulary(options.vocabulary, 0)
    return build_model(network, vocabulary, value_head=value_head, context_length=options.context, rows_multiple=128)


def _batch(options: argparse.Namespace, size: str) -> Any:
    import numpy as np

    from training.data.batches import Batch

    generator = np.random.default_rng(0)
    shape = (_blocks(options, size), options.context)
    return Batch(generator.integers(0, options.vocabulary, shape), generator.random(shape, dtype=np.float32))


def _blocks(options: argparse.Namespace, size: str) -> int:
    return _micro_batch(options, size) * options.accumulation


def _micro_batch(options: argparse.Namespace, size: str) -> int:
    return options.micro_batch or MICRO_BATCHES.get(size, 4)


def _seconds(step: Any, device: Any) -> float:
    import torch

    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


if __name__ == "__main__":
    sys.exit(main())
