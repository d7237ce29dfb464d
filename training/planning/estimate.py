"""Estimate the memory and time of a step by arithmetic alone.

Memory is the peak of one rank. The model states are counted as in ZeRO (arXiv 1910.02054, section 3), and DeepSpeed
0.19's other buffers as measured; see tests/benchmarks/README.md.
"""

from dataclasses import dataclass
from typing import Any

from training.linear_loss import LOGITS_ON_GPU, TOKENS_ON_CPU
from training.model.shape import ModelShape

# Bytes of a float32 value; and per parameter, of the float32 weights and of AdamW's moments.
_EXACT, _MASTER, _MOMENTS = 4, 4, 8
_ALL_REDUCED = 5e8  # elements that DeepSpeed flattens for an all-reduce
_GRADIENTS_OF_A_LAYER = 0.25  # as a share of its kept activations; measured
# The share of the peak that the matrix products of a step reach, and how often kept activations are read or written.
# On the CPU fitted to the sizes measured in tests/benchmarks/README.md; on a GPU an assumption.
_MATMUL_SHARE = {False: 0.85, True: 0.65}
_PASSES = 8
# Bytes read or written per updated parameter: gradients, AdamW, copies; on a CPU into fresh pages, measured.
_UPDATE_BYTES = {False: 120, True: 40}
# Memory of activations on the CPU relative to their size: glibc keeps freed blocks, which fragment.
_CPU_ALLOCATOR = 1.2


@dataclass(frozen=True)
class Layout:
    """How the engine lays out the states of a model.

    Attributes:
        zero_stage: 0 to 3.
        offload_optimizer, offload_parameters: whether they are in main memory.
        reduce_bucket: elements of a bucket of gradients.
        live_parameters: maximum number of parameters gathered at once in ZeRO 3.
        buckets: number of gradient buckets held in addition to the gradients; 0 if they are reduced in place.
        exact_sums: whether bf16 gradients are summed in float32. In ZeRO 1 without offloading a separate optimiser does
            so: it holds all sums from the start, and reduces them part by part.
    """

    zero_stage: int
    offload_optimizer: bool
    offload_parameters: bool
    reduce_bucket: int
    live_parameters: int
    buckets: int
    exact_sums: bool = False

    @property
    def sums_stay(self) -> bool:
        """Whether gradient sums are allocated for the whole step."""
        return self.exact_sums and (self.zero_stage == 3 or (self.zero_stage == 1 and not self.offload_optimizer))

    @classmethod
    def of(cls, deepspeed: dict[str, Any], parameters: int) -> "Layout":
        """The layout of a configuration from `training.engine.deepspeed_config`, for a model of so many parameters.

        Settings that are missing have DeepSpeed's defaults.
        """
        zero = deepspeed["zero_optimization"]
        stage = int(zero["stage"])

        def offloaded(name: str) -> bool:
            return str((zero.get(name) or {}).get("device", "none")) != "none"

        contiguous = bool(zero.get("contiguous_gradients", True))
        overlapped = bool(zero.get("overlap_comm", stage == 3))
        return cls(
            stage,
            offloaded("offload_optimizer"),
            offloaded("offload_param"),
            min(int(zero.get("reduce_bucket_size", 5e8)), parameters),
            min(int(zero.get("stage3_max_live_parameters", 1e9)), parameters),
            (2 if overlapped else 1) if contiguous else 0,
            deepspeed["bf16"]["enabled"] and deepspeed.get("data_types", {}).get("grad_accum_dtype") == "fp32",
        )


@dataclass(frozen=True)
class Machine:
    """The device of a rank.

    Attributes:
        name: name to print.
        on_gpu: whether it is a GPU.
        flops: peak floating-point operations per second of matrix products.
        memory: bytes per rank.
        memory_bandwidth, link_bandwidth: bytes per second to its memory and to the other ranks.
        utilisation: share of `flops` that a step reaches; None to estimate it from the model's shape.
    """

    name: str
    on_gpu: bool
    flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    utilisation: float | None = None


@dataclass(frozen=True)
class Job:
    """A step to estimate: the model, the layout of its states, and the shape of its batch."""

    shape: ModelShape
    layout: Layout
    ranks: int
    micro_batch_size: int
    accumulation: int
    checkpointing: bool


@dataclass(frozen=True)
class Memory:
    """Peak memory of one rank in bytes, by purpose.

    Attributes:
        weights: weights in the training precision, including those gathered in ZeRO 3.
        optimizer: float32 weights and AdamW's two moments.
        gradients: gradients summed over micro-batches.
        activations: activations kept for the backward pass.
        loss: logits of a chunk, and the gradients computed with the loss.
        buckets: gradients being reduced, or flattened for the update.
        allocator: freed memory that the allocator keeps.
        main: main memory beside a GPU, for offloading or the copy of a checkpoint.
        copy: copy of the state while a checkpoint is written in the background; with a GPU it is in `main`.
    """

    weights: float
    optimizer: float
    gradients: float
    activations: float
    loss: float
    buckets: float
    allocator: float
    main: float = 0.0
    copy: float = 0.0

    @property
    def total(self) -> float:
        """Total, without `main`."""
        held = self.weights + self.optimizer + self.gradients
        return held + self.activations + self.loss + self.buckets + self.allocator + self.copy


@dataclass(frozen=True)
class Seconds:
    """Seconds of one step: forward and backward, the update, and communication, with no overlap."""

    compute: float
    update: float
    communication: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.compute + self.update + self.communication


def estimate_memory(job: Job, machine: Machine) -> Memory:
    """Peak memory of one rank.

    The peak is at the start of the backward pass, with all activations, or at its end, with all gradients and the
    buffers of the update; in between, activations are freed as gradients appear.
    """
    shape, layout = job.shape, job.layout
    stage, size = layout.zero_stage, shape.bytes_per_value
    whole, own = shape.parameters, shape.parameters / job.ranks
    weights = float(size * (own + layout.live_parameters if stage == 3 else whole))
    optimizer = (own if stage else whole) * ((_MASTER if stage else 0.0) + _MOMENTS)
    main = 0.0
    if layout.offload_optimizer and machine.on_gpu:
        main += optimizer + _MASTER * own
        optimizer = 0.0
    if layout.offload_parameters and machine.on_gpu and stage == 3:
        main += size * own
        weights -= size * own
    # Gradients of the earlier micro-batches; then those of the last one too.
    kept = (_EXACT if layout.exact_sums else size) * (whole if stage < 2 else own)
    summed = 0.0 if job.accumulation == 1 and not layout.sums_stay else kept
    # Contiguous buckets are allocated from the start, and reduced when full. Without them all gradients are kept until
    # the end and flattened there.
    own_sums = layout.sums_stay and stage == 1
    bucket = float(size * layout.reduce_bucket) if stage and not own_sums else 0.0
    waiting = 0.0 if stage < 2 else size * (layout.reduce_bucket if layout.buckets else whole)
    flattened = 0.0 if stage == 0 or layout.offload_optimizer else _MASTER * own
    if own_sums:
        flattened = float(_EXACT * min(_ALL_REDUCED, whole))
    activations = job.micro_batch_size * _kept(job)
    freed = 0.0 if machine.on_gpu else _CPU_ALLOCATOR * activations
    hidden, logits, head = _loss(job, machine)
    begins = Memory(
        weights, optimizer, summed, activations, hidden + logits + head, bucket * layout.buckets, freed, main
    )
    made = max(bucket * max(layout.buckets, 1), flattened)
    ends = Memory(weights, optimizer, kept + waiting, 0.0, 2 * head if shape.tied else head, made, freed, main)
    return max(begins, ends, key=lambda moment: moment.total)


def estimate_seconds(job: Job, machine: Machine) -> Seconds:
    """Duration of one step."""
    shape, layout = job.shape, job.layout
    blocks = job.micro_batch_size * job.accumulation
    flops = shape.flops_per_token * shape.context_length * blocks
    own = shape.parameters / (1 if layout.zero_stage == 0 else job.ranks)
    again = 4 / 3 if job.checkpointing else 1.0
    if machine.utilisation is None:
        kept = _PASSES * shape.kept * blocks / machine.memory_bandwidth
        compute = again * (flops / (_MATMUL_SHARE[machine.on_gpu] * machine.flops) + kept)
    else:
        compute = again * flops / (machine.utilisation * machine.flops)
    return Seconds(
        compute,
        _UPDATE_BYTES[machine.on_gpu] * own / machine.memory_bandwidth,
        bytes_sent(job) / machine.link_bandwidth,
    )


def bytes_sent(job: Job) -> float:
    """Bytes that a rank sends in a step with ring collectives: (N - 1) / N of everything that is reduced or gathered.

    ZeRO 1 reduces gradients and gathers weights once per step, ZeRO 2 reduces in each micro-batch, and ZeRO 3 also
    gathers twice in each (arXiv 1910.02054, section 7). Without ZeRO an all-reduce costs as much as both; so does ZeRO
    1's reduction of float32 sums, in addition to gathering the weights.
    """
    ring, layout = (job.ranks - 1) / job.ranks * job.shape.parameters, job.layout
    if layout.zero_stage == 1 and layout.exact_sums:
        return ring * (2 * _EXACT + job.shape.bytes_per_value)
    times = {0: 2, 1: 2, 2: job.accumulation + 1, 3: 3 * job.accumulation}[layout.zero_stage]
    return times * ring * job.shape.bytes_per_value


def checkpoint_bytes(job: Job) -> float:
    """Bytes of one checkpoint of all ranks: the weights, and the optimiser states with float32 weights."""
    master = _MASTER if job.layout.zero_stage else 0
    return job.shape.parameters * float(job.shape.bytes_per_value + master + _MOMENTS)


def _kept(job: Job) -> float:
    shape = job.shape
    # Gradients of one layer in the backward pass; with checkpointing, its recomputed activations.
    layer = shape.kept / shape.layers
    if not job.checkpointing or shape.kept_checkpointed is None:
        return shape.kept + _GRADIENTS_OF_A_LAYER * layer
    return shape.kept_checkpointed + (1 + _GRADIENTS_OF_A_LAYER) * layer


def _loss(job: Job, machine: Machine) -> tuple[float, float, float]:
    """Bytes of the loss: gradients of the hidden states, logits and their derivatives, gradients of the head."""
    shape = job.shape
    tokens, size = job.micro_batch_size * shape.context_length, shape.bytes_per_value
    hidden = float(tokens * shape.width * size)
    if not shape.linear_head:
        # All logits, their log-probabilities in float32, and the gradients of both.
        return 0.0, tokens * shape.vocabulary * 2.0 * (_EXACT + size), 0.0
    chunk = min(tokens, max(LOGITS_ON_GPU // shape.vocabulary, 1) if machine.on_gpu else TOKENS_ON_CPU)
    logits = float(chunk * shape.vocabulary * (size if size == _EXACT else 2 * size + _EXACT))
    return hidden, logits, float(shape.vocabulary * shape.width * (_EXACT + (size if size < _EXACT else 0)))
