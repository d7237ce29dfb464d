"""Wrap DeepSpeed: train a step, save, load, and gather the weights."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

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
_COMPANION = "companion.pt"
# Fields of an optimiser group that the settings decide: a checkpoint may have other values, and DeepSpeed 0.19 gives
# every group those of the first if the checkpoint was converted for another number of ranks.
_CHOSEN = ("weight_decay", "betas", "eps")


class Companion(Protocol):
    """State that is saved with the model, the same on every rank."""

    def state(self) -> dict[str, Any]:
        """Return tensors and plain values."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        ...


@dataclass(frozen=True)
class StepOutcome:
    """The results of a step on this rank, as tensors on the device, without waiting for it.

    Attributes:
        loss: scalar, this rank's share of the global mean; shares add up over ranks.
        metrics: scalars that add up in the same way, except `max_…` (see `training.objectives.merge_metrics`).
        gradient_norm: of the whole model before clipping, the same on every rank; None if DeepSpeed has none.
        applied: false if the update was skipped: a spike, a loss or gradient that is not finite, or fp16's loss scale.
        harmful: scalar, whether the loss of the global batch is a spike or not finite; None without spike detection.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    gradient_norm: Tensor | float | None
    applied: bool
    harmful: Tensor | None = None


def choose_precision(config: TrainingConfig, device: torch.device) -> Precision:
    """Choose the precision; `auto` is bf16 on a GPU that supports it, else fp32.

    A CPU may emulate bf16 at a hundredth of fp32's speed.

    Raises:
        UserError: fp16 on a CPU.
    """
    if config.precision == "fp16" and device.type == "cpu":
        raise UserError("training.precision=fp16 needs a GPU; set training.precision=fp32, or auto.")
    if config.precision != "auto":
        return config.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def check_compiler(device: torch.device) -> None:
    """Refuse torch.compile without a compiler.

    Raises:
        UserError: says what is missing.
    """
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise UserError("training.compile needs a C++ compiler on a CPU, such as g++. Install one, or set it to false.")
    if device.type == "cuda" and find_spec("triton") is None:
        raise UserError("training.compile needs the package triton on a GPU. Install it, or set it to false.")


class Engine:
    """A model and its optimiser, wrapped by DeepSpeed.

    Every loss is divided by the predicted tokens of the whole global batch, so gradients of micro-batches and ranks
    are summed, never averaged, and the update does not depend on how the batch was cut.

    Args:
        model: in float32, identical on every rank. With ZeRO stage 3, only rank 0's weights are used, and the others
            may be skeletons (`training.model.language_model.build_model`).
        config: of the training.
        horizon: the batch arithmetic.
        world: the ranks; started.
        precision: from `choose_precision`.
        reshaped: whether the checkpoint to load is from another number of ranks.
        companion: state to save and load with it; None for none.

    Attributes:
        watch: seconds of the last step by phase: `forward` (including the loss and its first gradients), `backward` and
            `optimizer`, and with several ranks `communication`, which is excluded from the others unless it overlaps
            with them.
    """

    def __init__(
        self,
        model: LanguageModel,
        config: TrainingConfig,
        horizon: Horizon,
        world: World,
        precision: Precision,
        *,
        reshaped: bool = False,
        companion: Companion | None = None,
    ) -> None:
        self.model = model
        self._companion = companion
        self.horizon = horizon
        self.world = world
        self.precision = precision
        self.watch = Stopwatch(world.device)
        self._stage = config.zero_stage
        self._guard = None if config.skip_sigmas is None else SpikeGuard(config.skip_sigmas, world.device)
        # Without ZeRO no state is partitioned.
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
        """Run forward and backward on this rank's blocks, micro-batch by micro-batch, then update the weights.

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
            # Copies from page-locked memory (`training.data.prefetch`) do not block.
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
            # DeepSpeed averages over ranks; the ranks' losses must be summed.
            self._engine.backward(loss * self.horizon.ranks, scale_wrt_gas=False)
            self.watch.lap("backward")
            self._engine.step()
            self.watch.lap("optimizer")
        applied = self._engine.was_step_applied()
        norm = self._engine.get_global_grad_norm()
        return StepOutcome(torch.stack(losses).sum(), merge_metrics(metrics), norm, applied, harmful)

    @torch.no_grad()
    def totals(self, batch: Batch, objective: Objective) -> dict[str, float]:
        """Return an objective's metrics, summed over a batch, without dropout or update. Every rank calls it.

        Args:
            batch: arrays, different on each rank.
            objective: has the metrics; a loss that the network itself adds is not included.
        """
        self._engine.eval()
        ids, scores = (torch.as_tensor(each).to(self.world.device) for each in (batch.input_ids, batch.scores))
        with self.model.uncompiled():
            _, measured = self._engine(ids, objective=objective, scores=scores, count=1)
        return {name: float(value) for name, value in measured.items()}

    def is_finite(self) -> bool:
        """Whether all of this rank's weights and optimiser states are finite."""
        tensors = [getattr(each, "ds_tensor", each) for each in self.model.parameters()]
        tensors += [each for group in self._adam.param_groups for each in group["params"]]
        # Between steps, ZeRO 3 holds its float32 weights nowhere else.
        tensors += list(self._adam.state)
        states = (value for state in self._adam.state.values() for value in state.values())
        tensors += [each for each in states if isinstance(each, Tensor)]
        # The extremes of a tensor are NaN if any value is, and unlike `isfinite` they need no memory.
        once = {id(each): each for each in tensors if each.numel()}
        extremes = [torch.stack(each.detach().aminmax()) for each in once.values()]
        return all(bool(each.isfinite().all()) for each in extremes)

    @property
    def skipped(self) -> int:
        """Number of skipped updates, including those before the loaded state."""
        return int(self._engine.skipped_steps)

    def forget_losses(self) -> None:
        """Reset spike detection, because the following steps have another loss."""
        if self._guard is not None:
            self._guard.forget()

    def save(self, folder: Path, write: Callable[[Any, Path], object] = torch.save) -> list[Path]:
        """Write this rank's part of the state into an existing, empty folder: weights, optimiser and generators.

        Every rank calls it. The folder is complete when all have returned.

        Args:
            folder: for the files.
            write: called with a file's content, which the next step changes in place, and its path.

        Returns:
            The files of this rank.

        Raises:
            OSError, RuntimeError: a file could not be written. The ranks stay in step.
        """
        written: list[Path] = []
        failures: list[Exception] = []

        def guarded(state_dict: Any, path: str | Path) -> None:
            try:
                write(state_dict, Path(path))
                written.append(Path(path))
            except (OSError, RuntimeError) as failure:  # torch raises RuntimeError where its file writer fails
                failures.append(failure)

        # DeepSpeed's ranks synchronise while they save: one that raised in the middle would leave the others waiting.
        # So rank 0 does not copy DeepSpeed's recovery script either, which phf does not need.
        with (
            _replaced(self._engine.checkpoint_engine, "save", guarded),
            _replaced(self._engine, "_copy_recovery_script", lambda _: None),
        ):
            # Without `latest`, which DeepSpeed writes before the other ranks have finished.
            self._engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)
        guarded(_generator_state(self.world.device), self._generator_file(folder))
        if self._guard is not None and self.world.is_main:
            guarded(self._guard.state(), folder / _GUARD)
        if self._companion is not None and self.world.is_main:
            guarded(self._companion.state(), folder / _COMPANION)
        if failures:
            raise failures[0]
        return written

    def load(self, folder: Path, scratch: Path | None = None) -> None:
        """Load the state that `save` wrote. The caller has verified the files' hashes. Every rank calls it.

        A state from another number of ranks is converted first; the generators of additional ranks do not change.
        Weight decay, betas and epsilon come from the settings, not from the state.

        Args:
            folder: of the state; only read.
            scratch: a folder shared by all ranks, for the conversion; by default the parent of `folder`.

        Raises:
            UserError: DeepSpeed finds nothing to load, or the files contain more than tensors and plain values.
            IncompleteError: there is no space for the conversion.
        """
        chosen = [{name: group[name] for name in _CHOSEN} for group in self._optimizer.param_groups]
        with plain_loading(folder) as place:
            if self._reshaped:
                self._load_reshaped(folder, place, scratch)
            elif not self._load(place, TAG):
                raise UserError(f"DeepSpeed cannot load the checkpoint {folder}: it contains no state of this kind.")
            for group, settings in zip(self._optimizer.param_groups, chosen, strict=True):
                group.update(settings)
            if self._guard is not None and (folder / _GUARD).is_file():
                self._guard.load(torch.load(folder / _GUARD, weights_only=True))
            if self._companion is not None:
                self._companion.load(torch.load(folder / _COMPANION, map_location="cpu", weights_only=True))
            generators = self._generator_file(folder)
            if generators.is_file():
                _set_generator_state(torch.load(generators, weights_only=True), self.world.device)

    def _load_reshaped(self, folder: Path, place: Path, scratch: Path | None) -> None:
        with nullcontext(place.parent) if scratch is None else plain_path(scratch) as beside:
            # The staging prefix makes the next save delete any leftovers.
            target = beside / f"{STAGING}universal"
            self.world.on_main(lambda: to_universal(place / TAG, target, folder))
            if not self._load(target.parent, target.name):
                raise UserError(f"DeepSpeed cannot load the checkpoint {folder} with another number of ranks.")
            self.world.barrier()
            self.world.on_main(lambda: shutil.rmtree(target))
        # DeepSpeed 0.19 shares one step counter among all states of ZeRO 3, and each would increment it.
        for state in self._optimizer.state.values():
            state["step"] = state["step"].clone()

    def _load(self, folder: Path, tag: str) -> bool:
        return self._engine.load_checkpoint(str(folder), tag=tag)[0] is not None

    def state_dict(self) -> dict[str, Tensor] | None:
        """Gather the whole model's weights, unpadded, on the CPU of rank 0; None elsewhere. Every rank calls it."""
        if self._stage == 3:
            gathered: Mapping[str, Tensor] | None = self._engine._zero3_consolidated_16bit_state_dict()
        else:
            gathered = self.model.state_dict() if self.world.is_main else None
        if gathered is None or not self.world.is_main:
            return None
        weights = {name: tensor.detach().cpu() for name, tensor in gathered.items()}
        return self.model.padding.remove(weights, prefix="causal.")

    def whole_model(self) -> Any | None:
        """Return the Hugging Face model with whole weights on rank 0; None elsewhere. Every rank calls it."""
        if self._stage < 3:
            return self.model.causal if self.world.is_main else None
        weights = self.state_dict()
        if weights is None:
            return None
        with torch.random.fork_rng(devices=[]):  # initialising the copy must not disturb the training's dropout
            copy = type(self.model.causal)(self.model.causal.config)
        copy.load_state_dict(
            {name.removeprefix("causal."): each for name, each in weights.items() if name.startswith("causal.")}
        )
        # Use the training's precision, as with other stages; some attention requires it. Buffers keep theirs: rotary
        # frequencies would change in bf16.
        for parameter in copy.parameters():
            parameter.data = parameter.data.to(DTYPES[self.precision])
        return copy.to(self.world.device)

    def close(self) -> None:
        """Remove DeepSpeed's hooks from the model."""
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
    """Group parameters: matrices and embeddings decay, vectors (biases and norms) do not. Shared ones occur once."""
    # A parameter that ZeRO 3 has partitioned is flat; `ds_shape` is its original shape.
    trained = [(each, len(getattr(each, "ds_shape", each.shape))) for each in model.parameters() if each.requires_grad]
    decayed = [parameter for parameter, dimensions in trained if dimensions >= 2]
    others = [parameter for parameter, dimensions in trained if dimensions < 2]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": weight_decay}]
    return [*groups, {"params": others, "weight_decay": 0.0}] if others else groups


def seed_generators(seed: int, rank: int) -> None:
    """Seed torch's generators, which dropout uses, with a different sequence for each rank."""
    torch.manual_seed(seed * 1_000_003 + rank)


def _generator_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return {**state, "cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def _set_generator_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
