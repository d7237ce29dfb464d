"""The ranks of a run, started by torchrun, deepspeed's launcher, srun or phf, or alone; and DeepSpeed's import."""

import logging
import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _set_pg_timeout

from scorers.errors import UserError
from training.distributed.host import own_cores, share_of_cores, way_to_others
from training.distributed.rendezvous import COLLECTIVE_TIMEOUT, MEETING_TIMEOUT, Rendezvous, exit_code_of
from training.distributed.slurm_environment import slurm_ranks

Value = TypeVar("Value")


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.strip().isdecimal():
        raise UserError(
            f"The environment variable {variable} is {text!r}, which is not a number. Start ranks with torchrun, the "
            f"deepspeed launcher or srun, or unset {variable} to train alone."
        )
    return int(text)


@dataclass
class World:
    """This process among its peers. `World.from_environment` creates it, `start` starts the process group.

    Attributes:
        rank, local_rank, size, local_size: as launchers number processes.
        device: the device of the model.
    """

    rank: int
    local_rank: int
    size: int
    local_size: int
    device: torch.device
    _agreement: Any = field(default=None, repr=False)

    @classmethod
    def from_environment(cls) -> "World":
        """Read the variables of a launcher (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE) or `srun`, if any.

        Raises:
            UserError: the variables are incomplete, or not numbers.
        """
        # Libraries read these variables too.
        os.environ.update(slurm_ranks(os.environ))
        size = _number("WORLD_SIZE", 1)
        if size > 1 and not {"RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            raise UserError(
                f"WORLD_SIZE is {size}, but RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are not all set. "
                "Start ranks with torchrun, the deepspeed launcher or srun, or unset WORLD_SIZE to train alone."
            )
        rank, local_rank = _number("RANK", 0), _number("LOCAL_RANK", 0)
        local_size = _number("LOCAL_WORLD_SIZE", _number("LOCAL_SIZE", size))
        if rank >= size or local_rank >= local_size:
            raise UserError(
                f"RANK is {rank} of WORLD_SIZE {size}, and LOCAL_RANK {local_rank} of LOCAL_WORLD_SIZE {local_size}: "
                "both must count from 0. Start ranks with torchrun, the deepspeed launcher or srun, or correct them."
            )
        if size > 1 and not (os.environ["MASTER_ADDR"] and 0 < _number("MASTER_PORT", 0) < 2**16):
            raise UserError(
                f"MASTER_ADDR is {os.environ['MASTER_ADDR']!r} and MASTER_PORT {os.environ['MASTER_PORT']!r}: give the "
                "machine of rank 0, and a port between 1 and 65535 that is free there."
            )
        if not torch.cuda.is_available():
            return cls(rank, local_rank, size, local_size, torch.device("cpu"))
        return cls(rank, local_rank, size, local_size, torch.device("cuda", local_rank))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints, logs and commits."""
        return self.rank == 0

    def first(self, work: Callable[[], Value]) -> Value:
        """Run `work` on rank 0, then, once it succeeded, on the others. Needs no process group.

        Work that takes hours (a token store) must not run into the timeout of a collective, so the others wait on the
        rendezvous store. If one rank fails, the others exit with its status.

        Raises:
            UserError: `work` raised it, or there are more ranks on this machine than GPUs.
            RankError: on a rank that failed where rank 0 did not, with the reason; and on rank 0.
            SystemExit: on the others, without a message.
        """
        if self.size == 1:
            self._check_device()
            return work()
        # Check the machine of each rank before hours of preparation.
        self._rendezvous.meet(self._check_device)
        return self._rendezvous.together("prepared", work, after_main=True)

    @cached_property
    def _rendezvous(self) -> Rendezvous:
        return Rendezvous(self.rank, self.size)

    def _check_device(self) -> None:
        if self.device.type == "cuda" and self.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"Local rank {self.local_rank} has no GPU: there are {torch.cuda.device_count()} here. "
                "Start one rank per GPU, or hide the GPUs with CUDA_VISIBLE_DEVICES= to train on the CPU."
            )

    def start(self) -> None:
        """Start the process group (nccl on GPUs, else gloo) and share the cores among the ranks of this machine.

        Raises:
            DistError: a rank did not join the group within minutes.
        """
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.size > self.local_size:
            os.environ.update(way_to_others(os.environ["MASTER_ADDR"], os.environ))
        deepspeed = import_deepspeed()
        os.environ.setdefault("LOCAL_RANK", str(self.local_rank))
        if not dist.is_initialized():
            self._start_group()
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        # Ranks exchange flags on the CPU, so that this never waits for a GPU's queue.
        if self.size > 1 and self.device.type == "cuda":
            self._agreement = dist.new_group(backend="gloo", timeout=MEETING_TIMEOUT)
            _set_pg_timeout(COLLECTIVE_TIMEOUT, self._agreement)
        # Set it even for a single rank: it also stops MKL from choosing the number of threads itself, on which the last
        # bits of a matrix product depend.
        torch.set_num_threads(self._threads())

    def _start_group(self) -> None:
        alone = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(
            "nccl" if self.device.type == "cuda" else "gloo",
            store=PrefixStore("ranks", self._rendezvous.store) if self.size > 1 else alone,
            rank=self.rank,
            world_size=self.size,
            timeout=MEETING_TIMEOUT,
        )
        _set_pg_timeout(COLLECTIVE_TIMEOUT, dist.group.WORLD)

    def _threads(self) -> int:
        cores, host = own_cores(), socket.gethostname()
        here = [theirs for place, theirs in self.gather((host, cores)) if place == host]
        return torch.get_num_threads() if self.local_size == 1 else share_of_cores(cores, here)

    def stop(self) -> None:
        """End the process group. A single rank keeps it, because DeepSpeed's globals would outlive it."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier(group=self._agreement)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set on any rank."""
        if self.size == 1:
            return flags
        tensor = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._agreement)
        return tuple(bool(flag) for flag in tensor.tolist())

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks of a tensor on the CPU; the tensor itself when alone."""
        if self.size > 1:
            dist.all_reduce(values, group=self._agreement)
        return values

    def sum_on_device(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks of a tensor on the model's device, without waiting for the result."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def max(self, values: torch.Tensor) -> torch.Tensor:
        """Maximum over all ranks of a tensor on the CPU; the tensor itself when alone."""
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self._agreement)
        return values

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, in order; they must be picklable."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._agreement)
        return values

    def on_main(self, work: Callable[[], Value]) -> Value:
        """Run `work` on rank 0 while the others wait, and return its result, which must be picklable, on every rank.

        If it raises, the other ranks exit silently with the status of rank 0's error.
        """
        if self.size == 1:
            return work()
        box: list[Any] = [None, 0]
        try:
            if self.is_main:
                box = [work(), 0]
        except BaseException as error:
            box = [None, exit_code_of(error)]
            raise
        finally:
            dist.broadcast_object_list(box, src=0, group=self._agreement)
        if box[1]:
            raise SystemExit(box[1])
        result: Value = box[0]
        return result


@contextmanager
def _absent(module: str) -> Iterator[None]:
    """Hide a module from imports in the block, unless it has already been imported."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


def import_deepspeed() -> Any:
    """Import DeepSpeed without its log messages, and on the CPU without its compiled collective.

    On a CPU it would compile a shared-memory collective with ninja at its first start (40 s on two cores), and fail
    without a compiler, although gloo works as well.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed's autotuner, which phf does not use, imports MLflow if installed: two seconds per rank.
    with _absent("mlflow"):
        import deepspeed

    # This would print memory statistics nine times.
    deepspeed.runtime.bf16_optimizer.see_memory_usage = lambda *_, **__: None
    if deepspeed.accelerator.get_accelerator().device_name() == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
