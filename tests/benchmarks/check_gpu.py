"""`make check-gpu`: whether phf does on this GPU what it does on a CPU, and how fast; ten minutes, no network.

    python -P -m tests.benchmarks.check_gpu [--seconds 600] [--steps losses resume ...] [--device cuda]

Each step runs in a process of its own, in order of value, and prints a line of JSON: its name, `passed`, `failed`,
`timeout` or `skipped` (no time is left), seconds, and figures or the error. A failed step does not end the others.
Exit status: 0 if all that ran passed, 1 if not, 2 without a GPU.

It uses the interpreter that runs it, so a PYTHONPATH with the installed packages and this checkout is enough.
`--device cpu` tries every step with tiny sizes.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    "mle": {},
    "filtering": {},
    "conditional": {},
    "unlikelihood": {"threshold": 0.5, "alpha": 1.0},
    "rwr": {"beta": 10.0},
    "awr": {"alpha": 0.5, "beta": 10.0},
}
# Largest relative difference of a loss and of all its gradients from those in float64.
_TOLERANCES = {"fp32": 1e-3, "bf16": 5e-2}
# Largest difference of a probability from float32 on the CPU.
_SCORE_TOLERANCES = {"fp32": 1e-3, "bf16": 3e-2, "fp16": 1e-2}
# Seconds before the end of the time in which no step begins.
_LEAST_S = 10.0


class CheckFailedError(Exception):
    """What a step found is wrong."""


def losses(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Losses and gradients of every objective on the device, against float64 on the CPU."""
    import torch

    figures: dict[str, Any] = {}
    for name, settings in OBJECTIVES.items():
        exact = _loss_and_gradients(name, settings, torch.float64, torch.device("cpu"))
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            found = _loss_and_gradients(name, settings, dtype, torch.device(options.device))
            figures[f"{name}, {precision}"] = apart = [_relative(*pair) for pair in zip(found, exact, strict=True)]
            if not max(apart) <= _TOLERANCES[precision]:
                raise CheckFailedError(f"{name} in {precision} differs by {apart} (loss, gradients) from float64")
    return figures


def _loss_and_gradients(name: str, settings: Mapping[str, Any], dtype: Any, device: Any) -> tuple[Any, Any]:
    import torch

    from training.objectives import build

    objective = build(name, **settings)
    model = _network("nano", 64, value_head=objective.needs_values).to(dtype).to(device).eval()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, _VOCABULARY, (4, 64), generator=generator).to(device)
    scores = torch.rand((4, 64), generator=generator).to(device)
    loss, _ = model(ids, objective=objective, scores=scores, count=4 * 63)
    loss.backward()
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    return loss.detach().double().cpu(), torch.cat([each.double().cpu().flatten() for each in gradients])


def _relative(found: Any, exact: Any) -> float:
    return float((found - exact).norm() / exact.norm().clamp(min=1e-12))


_VOCABULARY = 512


def _network(size: str, context: int, *, value_head: bool = False) -> Any:
    import torch

    from training.config import ModelConfig
    from training.model.language_model import build_model
    from training.model.vocabulary import Vocabulary

    torch.manual_seed(0)
    vocabulary = Vocabulary(_VOCABULARY, 0)
    return build_model(ModelConfig(name=size), vocabulary, value_head=value_head, context_length=context)


def steps_of_engine(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Steps of the engine for every objective: the loss of the same blocks falls."""
    return {name: _engine_losses(options, name) for name in OBJECTIVES}


def zero(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """ZeRO 1, 2 and 3 with one rank train alike."""
    found = {f"stage {stage}": _engine_losses(options, "mle", zero_stage=stage) for stage in (1, 2, 3)}
    lasts = [each[-1] for each in found.values()]
    if max(lasts) - min(lasts) > _TOLERANCES["bf16"] * max(lasts):
        raise CheckFailedError(f"the stages end with different losses: {found}")
    return found


def _engine_losses(options: argparse.Namespace, name: str, **settings: Any) -> list[float]:
    import numpy as np
    import torch

    from training.config import TrainingConfig
    from training.data.batches import Batch
    from training.distributed.world import World
    from training.engine.engine import Engine, choose_precision
    from training.objectives import build
    from training.schedule import plan_horizon

    world = World.from_environment()
    if not torch.distributed.is_initialized():
        world.start()
    config = TrainingConfig(num_tokens=10**9, batch_size=8, micro_batch_size=4, **settings)
    objective = build(name, **OBJECTIVES[name])
    model = _network("nano" if options.device == "cpu" else "tiny", 128, value_head=objective.needs_values)
    engine = Engine(model, config, plan_horizon(config, 128, 1), world, choose_precision(config, world.device))
    generator = np.random.default_rng(0)
    batch = Batch(generator.integers(0, _VOCABULARY, (8, 128)), generator.random((8, 128), dtype=np.float32))
    found = [float(engine.train_step(batch, objective, 1e-3).loss) for _ in range(6)]
    if not np.isfinite(found).all() or found[-1] >= found[0]:
        raise CheckFailedError(f"the loss of {name} did not fall: {found}")
    return found


def resume(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """`phf train` ends with the same bytes if it goes back to a checkpoint and continues."""
    from safetensors.numpy import load_file

    run = ["train", str(_dataset(folder)), "--task", "toxicity", "--objective", "conditional", "--model", "nano"]
    sizes = ["--num-tokens", "20480", "--batch-size", "4", "--set", "training.save_every=10", *_SMALL]
    _phf(*run, *sizes, "--output", str(folder / "whole"))
    shutil.copytree(folder / "whole", folder / "resumed")
    _phf(*run, *sizes, "--output", str(folder / "resumed"), "--from-step", "30")
    whole, resumed = (load_file(next((folder / name).glob("model/*.safetensors"))) for name in ("whole", "resumed"))
    differing = [name for name, tensor in whole.items() if tensor.tobytes() != resumed[name].tobytes()]
    if differing:
        raise CheckFailedError(
            f"{len(differing)} of {len(whole)} tensors differ after a resume, such as {differing[0]}"
        )
    return {"tensors": len(whole)}


def evaluate(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """`phf evaluate` and `phf export-model` of a run that this machine has trained."""
    run = ["train", str(_dataset(folder)), "--task", "toxicity", "--objective", "conditional", "--model", "nano"]
    _phf(*run, "--num-tokens", "20480", "--batch-size", "4", *_SMALL, "--output", str(folder / "run"))
    _phf("evaluate", str(folder / "run"), "--samples", "64", "--guidance", "2")
    _phf("export-model", str(folder / "run"), "--output", str(folder / "exported"))
    report = json.loads(next((folder / "run" / "evaluation").glob("**/report.json")).read_text(encoding="utf-8"))
    return {"bits per byte": report["held_out"]["bits_per_byte"]["value"]}


_SMALL = ("--set", "data.vocab_size=512", "--set", "data.context_length=128")


def _dataset(folder: Path) -> Path:
    """A labelled dataset, made without Ray."""
    corpus, output = folder / "corpus.jsonl", folder / "labelled"
    texts = [f"The mill by river {i} turns. What damn fool {i} broke the wheel? Nobody knows. " * 4 for i in range(120)]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    _phf("label", str(corpus), "--output", str(output), "--scorer", "toxicity=linear", "--workers", "0")
    return output


def _phf(*arguments: str) -> str:
    command = [sys.executable, "-P", "-m", "phf", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip())[-600:]
        raise CheckFailedError(f"phf {' '.join(arguments[:1])} ended with status {done.returncode}: {last}")
    return done.stdout


def toxicity(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A toxicity network of RoBERTa's base size on the device against float32 on the CPU, and its rate."""
    import numpy as np
    from scipy.stats import spearmanr

    from scorers.contract import Document, Execution, ScoringError
    from scorers.registry import ScorerSpec, build
    from tests.benchmarks.references.toxicity import make_checkpoint
    from tests.benchmarks.scorer_toxicity import first_sentences
    from tests.benchmarks.text import prose

    layers, number = (2, 64) if options.device == "cpu" else (12, 4096)
    texts = prose()
    sentences = first_sentences(texts, number)
    checkpoint = make_checkpoint(folder / "network", texts, layers=layers)
    spec = ScorerSpec(kind="detoxify", model=str(checkpoint), config=str(folder / "network"), long="truncate")

    def scored(given: Sequence[str], **execution: Any) -> tuple[Any, float]:
        scorer = build("toxicity", spec, Execution(**execution))
        document = Document("".join(given), np.cumsum([len(each) for each in given]).astype(np.int32))
        scorer.score([document])  # warm up
        began = time.perf_counter()
        (found,) = scorer.score([document])
        if isinstance(found, ScoringError):
            raise CheckFailedError(str(found))
        return found, len(given) / (time.perf_counter() - began)

    few = sentences[:256]
    exact, _ = scored(few, device="cpu", precision="fp32")
    figures: dict[str, Any] = {"matmul, TFLOP/s": _matmul_rate(options.device)}
    for precision in ("fp32",) if options.device == "cpu" else ("fp32", "bf16", "fp16"):
        found, _ = scored(few, device=options.device, precision=precision)
        _, rate = scored(sentences, device=options.device, precision=precision)
        apart = float(np.abs(found - exact).max())
        figures[precision] = {
            "largest difference": apart,
            "rank correlation": float(spearmanr(found, exact).statistic),
            "sentences/s": rate,
        }
        if not apart <= _SCORE_TOLERANCES[precision]:
            raise CheckFailedError(f"scores in {precision} differ by {apart:.1e} from the CPU's: {figures}")
    return figures


def _matmul_rate(device: str) -> float:
    import torch

    size, dtype = (512, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        left @ right
    rounds = 10
    _synchronize(device)
    began = time.perf_counter()
    for _ in range(rounds):
        left @ right
    _synchronize(device)
    return rounds * 2 * size**3 / (time.perf_counter() - began) / 1e12


def _synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def speed_124m(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Training GPT-2 with 124M parameters beside a plain compiled loop, and `--plan` against what was measured."""
    return _speed(options, folder, "nano" if options.device == "cpu" else "gpt2")


def speed_1500m(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The same with 1.5B parameters."""
    return _speed(options, folder, "nano" if options.device == "cpu" else "gpt2-xl")


def _speed(options: argparse.Namespace, folder: Path, size: str) -> dict[str, Any]:
    from tests.benchmarks import gpu_training

    output = folder / "speed.json"
    tiny = ["--context", "64", "--vocabulary", "512", "--micro-batch", "2", "--accumulation", "2", "--no-compile"]
    given = ["--sizes", size, "--objectives", "mle", "--steps", "5", "--warm-up", "2", "--output", str(output)]
    gpu_training.main([*given, "--device", options.device, *(tiny if options.device == "cpu" else ())])
    lines = json.loads(output.read_text(encoding="utf-8"))["results"]
    if errors := [each["error"] for each in lines if "error" in each]:
        raise CheckFailedError(f"{size}: {errors}")
    figures: dict[str, Any] = {
        each["way"]: {name: each[name] for name in ("tokens_per_second", "mfu", "peak_memory")} for each in lines
    }
    if options.device != "cpu":
        micro = gpu_training.MICRO_BATCHES[size]
        planned = json.loads(
            _phf(
                *("train", "--plan", "--model", size, "--batch-size", str(4 * micro), "--json"),
                *("--set", f"training.micro_batch_size={micro}", "--set", "data.vocab_size=50257"),
            )
        )
        figures["planned memory"] = planned["memory"]
    return figures


STEPS: Mapping[str, tuple[float, Callable[[argparse.Namespace, Path], dict[str, Any]]]] = {
    "losses": (90, losses),
    "engine": (90, steps_of_engine),
    "zero": (90, zero),
    "resume": (120, resume),
    "evaluate": (120, evaluate),
    "toxicity": (120, toxicity),
    "speed-124m": (150, speed_124m),
    "speed-1500m": (240, speed_1500m),
}
"""By name: its time limit in seconds, and the step."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; return the exit status."""
    options = _options(arguments)
    if options.step is not None:
        return _run(options)
    if options.device == "cuda" and not _has_gpu():
        sys.stderr.write(
            "make check-gpu needs a GPU that torch can use, and there is none. To try it without: python -P -m "
            "tests.benchmarks.check_gpu --device cpu\n"
        )
        return 2
    end = time.monotonic() + options.seconds
    lines = [_run_in_own_process(name, options, end) for name in options.steps]
    return int(any(each["status"] in ("failed", "timeout") for each in lines))


def _run(options: argparse.Namespace) -> int:
    """Run one step in this process, and print its figures as the last line."""
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory(prefix="phf-check-gpu-") as folder:
        try:
            figures = STEPS[options.step][1](options, Path(folder))
        except CheckFailedError as error:
            sys.stderr.write(f"{error}\n")
            return 1
    sys.stdout.write(f"\n{json.dumps(figures)}\n")
    return 0


def _run_in_own_process(name: str, options: argparse.Namespace, end: float) -> dict[str, Any]:
    left = end - time.monotonic()
    line: dict[str, Any] = {"step": name, "status": "skipped", "seconds": 0.0}
    if left > _LEAST_S:
        began = time.monotonic()
        command = [sys.executable, "-P", "-m", "tests.benchmarks.check_gpu", "--device", options.device, "--step", name]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            printed, errors = process.communicate(timeout=min(left, STEPS[name][0]))
            line |= {"status": "failed", "error": errors.strip()[-800:]} if process.returncode else {"status": "passed"}
            if not process.returncode:
                line["figures"] = json.loads(printed.splitlines()[-1])
        except subprocess.TimeoutExpired:
            line["status"] = "timeout"
        finally:
            _kill(process)
        line["seconds"] = round(time.monotonic() - began, 1)
    sys.stdout.write(f"{json.dumps(line)}\n")
    sys.stdout.flush()
    return line


def _kill(process: "subprocess.Popen[str]") -> None:
    """End a step and everything that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="check_gpu", description="Whether phf works on this GPU.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=600.0, help="for all steps together")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
