"""DeepSpeed behind four verbs: train a step, save, load, and hand out the weights."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scorers.errors import UserError
from training.config import TrainingConfig
from training.data.batches import Batch
from training.distributed.world import World, import_deepspeed
from training.engine.deepspeed_config import DTYPES, Precision, deepspeed_config
from training.engine.plain_loading import plain_loading, plain_path
from training.engine.spikes import SpikeGuard
from training.engine.timing import Stopwatch, time_collectives
from training.engine.zero import shard, to_universal
from training.model.language_model import LanguageModel
from training.objectives import Objective, merge_metrics
from training.runs.checkpoints import STAGING
from training.schedule import Horizon

TAG = "deepspeed"
_GUARD = "losses.pt"
# Of a group of the optimiser, what the settings decide: those of a checkpoint are of then, and DeepSpeed 0.19 gives
# every group those of the first where it was rewritten for other ranks.
_CHOSEN = ("weight_decay", "betas", "eps")


@dataclass(frozen=True)
class StepOutcome:
    """What a step leaves behind on its rank, on the device and without having waited for it.

    Attributes:
        loss: scalar, this rank's share of the global mean: over ranks, shares add up.
        metrics: scalars that add up likewise, but for `max_…` (see `training.objectives.merge_metrics`).
        gradient_norm: of the whole model before clipping, the same on every rank; None where DeepSpeed has none.
        applied: false where the update was skipped: a spike, a loss or a gradient that is no number, or fp16's scale.
        harmful: scalar, whether it was to be skipped for the loss of the global batch, a spike or no number; None where
            spikes are not looked for.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    gradient_norm: Tensor | float | None
    applied: bool
    harmful: Tensor | None = None


def choose_precision(config: TrainingConfig, device: torch.device) -> Precision:
    """bf16 where the device computes in it, else fp32; a CPU may emulate bf16 at a hundredth of fp32's speed.

    Raises:
        UserError: fp16 on a CPU.
    """
    if config.precision == "fp16" and device.type == "cpu":
        raise UserError("training.precision=fp16 needs a GPU; set training.precision=fp32, or auto.")
    if config.precision != "auto":
        return config.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def check_compiler(device: torch.device) -> None:
    """Refuse torch.compile where it would find nothing to compile with.

    Raises:
        UserError: says what is missing.
    """
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise UserError("training.compile needs a C++ compiler on a CPU, such as g++. Install one, or set it to false.")
    if device.type == "cuda" and find_spec("triton") is None:
        raise UserError("training.compile needs the package triton on a GPU. Install it, or set it to false.")


class Engine:
    """A model, its optimiser, and DeepSpeed around both.

    Every loss is divided by the predicted tokens of the whole global batch, so gradients of micro-batches and ranks
    are summed, never averaged, and the update does not depend on how the batch was cut.

    Args:
        model: in float32; built alike on every rank. With ZeRO stage 3, rank 0's counts, and the others may have
            skeletons (`training.model.language_model.build_model`).
        config: of the training.
        horizon: the batch arithmetic.
        world: the ranks; started.
        reshaped: whether the checkpoint to load is of another number of ranks.

    Attributes:
        watch: where the seconds of the last step went: `forward` (the loss and its first gradients with it),
            `backward` and `optimizer`, and with several ranks `communication`, which is in none of the others but
            where it runs beside them.
    """

    def __init__(
        self, model: LanguageModel, config: TrainingConfig, horizon: Horizon, world: World, *, reshaped: bool = False
    ) -> None:
        self.model = model
        self.horizon = horizon
        self.world = world
        self.precision = choose_precision(config, world.device)
        self.watch = Stopwatch(world.device)
        self._stage = config.zero_stage
        self._guard = None if config.skip_sigmas is None else SpikeGuard(config.skip_sigmas, world.device)
        # Without ZeRO no state is cut by ranks.
        self._reshaped = reshaped and config.zero_stage > 0
        parameters = sum(parameter.numel() for parameter in model.parameters())
        json = deepspeed_config(
            config, horizon, self.precision, parameters=parameters, on_gpu=world.device.type == "cuda"
        )
        if self._reshaped:
            json["checkpoint"] = {**json.get("checkpoint", {}), "load_universal": True}
        if config.tf32 and world.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        if config.zero_stage == 3 and world.size > 1:
            shard(model, json, world, DTYPES[self.precision])
        optimizer = torch.optim.AdamW(
            parameter_groups(model, config.weight_decay),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            fused=True,
        )
        self._adam = optimizer
        self._engine, self._optimizer, _, _ = import_deepspeed().initialize(
            model=model, optimizer=optimizer, config=json, dist_init_required=False
        )
        if config.compile:
            model.compile_body()
        self._stop_timing = time_collectives(self.watch) if world.size > 1 else None

    def train_step(self, batch: Batch, objective: Objective, learning_rate: float) -> StepOutcome:
        """Forward and backward over this rank's blocks, micro-batch by micro-batch, and one update.

        Args:
            batch: this rank's part of the global batch, `micro_batch_size * accumulation` blocks; arrays or tensors.
            objective: the loss.
            learning_rate: of this update.
        """
        size, device = self.horizon.micro_batch_size, self.world.device
        losses, metrics = [], []
        harmful: Tensor | None = None
        self.watch.begin()
        self._engine.train()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        for start in range(0, len(batch.input_ids), size):
            # From page-locked memory (`training.data.prefetch`) nobody waits for the copies.
            input_ids = torch.as_tensor(batch.input_ids[start : start + size]).to(device, non_blocking=True)
            scores = torch.as_tensor(batch.scores[start : start + size]).to(device, non_blocking=True)
            loss, measured = self._engine(
                input_ids, objective=objective, scores=scores, count=self.horizon.predicted_per_step
            )
            losses.append(loss.detach())
            metrics.append(measured)
            if self._guard is not None and start + size >= len(batch.input_ids):
                factor = self._guard.factor(self.world.sum_on_device(torch.stack(losses).sum()))
                loss, harmful = loss * factor, factor.isnan()
            self.watch.lap("forward")
            # DeepSpeed averages over ranks; sums are wanted.
            self._engine.backward(loss * self.horizon.ranks, scale_wrt_gas=False)
            self.watch.lap("backward")
            self._engine.step()
            self.watch.lap("optimizer")
        applied = self._engine.was_step_applied()
        norm = self._engine.get_global_grad_norm()
        return StepOutcome(torch.stack(losses).sum(), merge_metrics(metrics), norm, applied, harmful)

    @torch.no_grad()
    def totals(self, batch: Batch, objective: Objective) -> dict[str, float]:
        """What an objective measures, summed over a batch; nothing is dropped or learnt. Every rank calls it.

        Args:
            batch: arrays, any of its own on each rank.
            objective: whose metrics they are; what a network adds to its loss is not in them.
        """
        self._engine.eval()
        ids, scores = (torch.as_tensor(each).to(self.world.device) for each in (batch.input_ids, batch.scores))
        with self.model.uncompiled():
            _, measured = self._engine(ids, objective=objective, scores=scores, count=1)
        return {name: float(value) for name, value in measured.items()}

    def is_finite(self) -> bool:
        """Whether all of this rank's weights, and what the optimiser remembers of them, are finite numbers."""
        tensors = [getattr(each, "ds_tensor", each) for each in self.model.parameters()]
        tensors += [each for group in self._adam.param_groups for each in group["params"]]
        # ZeRO 3 names its float32 weights nowhere else between two steps.
        tensors += list(self._adam.state)
        states = (value for state in self._adam.state.values() for value in state.values())
        tensors += [each for each in states if isinstance(each, Tensor)]
        # Extremes of a tensor are NaN where anything in it is, and take no memory, unlike `isfinite` of all of it.
        once = {id(each): each for each in tensors if each.numel()}
        extremes = [torch.stack(each.detach().aminmax()) for each in once.values()]
        return all(bool(each.isfinite().all()) for each in extremes)

    @property
    def skipped(self) -> int:
        """Updates that were skipped up to the state that `load` took up, and since."""
        return int(self._engine.skipped_steps)

    def forget_losses(self) -> None:
        """Tell no spike by the losses so far: what comes is trained for something else."""
        if self._guard is not None:
            self._guard.forget()

    def save(self, folder: Path, write: Callable[[Any, Path], object] = torch.save) -> list[Path]:
        """Write this rank's part of the state into an existing, empty folder: weights, optimiser and generators.

        Every rank calls it. The folder is whole when all have returned.

        Args:
            folder: where the files go.
            write: takes a file's content, which changes with the next step, and its path.

        Returns:
            The files of this rank.

        Raises:
            OSError, RuntimeError: a file could not be written. The ranks are in step all the same.
        """
        written: list[Path] = []
        failures: list[Exception] = []

        def guarded(state_dict: Any, path: str | Path) -> None:
            try:
                write(state_dict, Path(path))
                written.append(Path(path))
            except (OSError, RuntimeError) as failure:  # torch raises RuntimeError where its file writer fails
                failures.append(failure)

        # DeepSpeed's ranks meet while they save: one that left in the middle would leave the others waiting. So rank 0
        # copies no scripts beside the files either, which nobody here needs.
        with (
            _replaced(self._engine.checkpoint_engine, "save", guarded),
            _replaced(self._engine, "_copy_recovery_script", lambda _: None),
        ):
            # Without `latest`, which DeepSpeed writes before the other ranks have finished.
            self._engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)
        guarded(_generator_state(self.world.device), self._generator_file(folder))
        if self._guard is not None and self.world.is_main:
            guarded(self._guard.state(), folder / _GUARD)
        if failures:
            raise failures[0]
        return written

    def load(self, folder: Path, scratch: Path | None = None) -> None:
        """Take up the state that `save` wrote. The caller has verified the files' hashes. Every rank calls it.

        With another number of ranks it is rewritten first. Generators of ranks that were not there then stay as they
        are. Weight decay, betas and epsilon are those of the settings, whatever they were then.

        Args:
            folder: of the state; it is only read.
            scratch: a folder that all ranks see, to rewrite it in; by default the one that `folder` is in.

        Raises:
            UserError: DeepSpeed finds nothing to load, or the files hold more than tensors and plain values.
            IncompleteError: there is no room to rewrite it in.
        """
        chosen = [{name: group[name] for name in _CHOSEN} for group in self._optimizer.param_groups]
        with plain_loading(folder) as place:
            if self._reshaped:
                self._load_reshaped(folder, place, scratch)
            elif not self._load(place, TAG):
                raise UserError(f"DeepSpeed cannot load the checkpoint {folder}: it holds no state of this kind.")
            for group, settings in zip(self._optimizer.param_groups, chosen, strict=True):
                group.update(settings)
            if self._guard is not None and (folder / _GUARD).is_file():
                self._guard.load(torch.load(folder / _GUARD))
            generators = self._generator_file(folder)
            if generators.is_file():
                _set_generator_state(torch.load(generators), self.world.device)

    def _load_reshaped(self, folder: Path, place: Path, scratch: Path | None) -> None:
        with nullcontext(place.parent) if scratch is None else plain_path(scratch) as beside:
            # Named as what is staged, so that the next save clears away what is left of it.
            target = beside / f"{STAGING}universal"
            self.world.on_main(lambda: to_universal(place / TAG, target, folder))
            if not self._load(target.parent, target.name):
                raise UserError(f"DeepSpeed cannot load the checkpoint {folder} with another number of ranks.")
            self.world.barrier()
            self.world.on_main(lambda: shutil.rmtree(target))
        # DeepSpeed 0.19 gives all states of ZeRO 3 one counter of steps, which each of them then counts up.
        for state in self._optimizer.state.values():
            state["step"] = state["step"].clone()

    def _load(self, folder: Path, tag: str) -> bool:
        return self._engine.load_checkpoint(str(folder), tag=tag)[0] is not None

    def state_dict(self) -> dict[str, Tensor] | None:
        """The whole model's weights without padding, on the CPU of rank 0; None elsewhere. Every rank calls it."""
        if self._stage == 3:
            gathered: Mapping[str, Tensor] | None = self._engine._zero3_consolidated_16bit_state_dict()
        else:
            gathered = self.model.state_dict() if self.world.is_main else None
        if gathered is None or not self.world.is_main:
            return None
        weights = {name: tensor.detach().cpu() for name, tensor in gathered.items()}
        return self.model.padding.remove(weights, prefix="causal.")

    def whole_model(self) -> Any | None:
        """The Hugging Face model with whole weights, on rank 0; None on the others. Every rank calls it."""
        if self._stage < 3:
            return self.model.causal if self.world.is_main else None
        weights = self.state_dict()
        if weights is None:
            return None
        with torch.random.fork_rng(devices=[]):  # weights that are replaced at once; the training's dropout goes on
            copy = type(self.model.causal)(self.model.causal.config)
        copy.load_state_dict(
            {name.removeprefix("causal."): each for name, each in weights.items() if name.startswith("causal.")}
        )
        # In the precision of the training, as the model of other stages is, and as some attention must have it. Like
        # there, buffers keep theirs: rotary frequencies in bf16 would be other ones.
        for parameter in copy.parameters():
            parameter.data = parameter.data.to(DTYPES[self.precision])
        return copy.to(self.world.device)

    def close(self) -> None:
        """Let go of DeepSpeed's hooks on the model."""
        if self._stop_timing is not None:
            self._stop_timing()
        self._engine.destroy()

    def _generator_file(self, folder: Path) -> Path:
        return folder / f"generators-{self.world.rank:05d}.pt"


@contextmanager
def _replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    setattr(holder, name, value)
    try:
        yield
    finally:
        delattr(holder, name)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and embeddings decay; vectors (biases and norms) don't. Shared parameters occur once."""
    # What ZeRO 3 has partitioned is flat, and remembers its shape.
    trained = [(each, len(getattr(each, "ds_shape", each.shape))) for each in model.parameters() if each.requires_grad]
    decayed = [parameter for parameter, dimensions in trained if dimensions >= 2]
    others = [parameter for parameter, dimensions in trained if dimensions < 2]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": weight_decay}]
    return [*groups, {"params": others, "weight_decay": 0.0}] if others else groups


def seed_generators(seed: int, rank: int) -> None:
    """Seed torch's generators for a rank: what dropout draws from, another sequence on each."""
    torch.manual_seed(seed * 1_000_003 + rank)


def _generator_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return {**state, "cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def _set_generator_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
