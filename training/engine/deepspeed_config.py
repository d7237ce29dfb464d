"""Build DeepSpeed's configuration from the settings and the user's own JSON.

Conflicts between the two are refused. DeepSpeed itself parses the result before any data is read, so that invalid
values and mistyped names are found early.
"""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError

from scorers.errors import UserError
from training.config import TrainingConfig
from training.distributed.world import import_deepspeed
from training.model.build_network import first_line
from training.schedule import Horizon


class _RecordingDict(dict[str, Any]):
    """A dictionary that records the keys that are read: DeepSpeed has no list of the names that it knows."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.names: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.names.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.names.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.names.add(key)
        return super().__getitem__(key)


def check_deepspeed(path: Path, theirs: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
    """Refuse what DeepSpeed would refuse, and what it would silently ignore: a mistyped name.

    Args:
        path: of the user's file.
        theirs: its contents.
        merged: the whole configuration. The number of ranks is not known yet, and not checked.

    Raises:
        UserError: names the file, the key and what is wrong with it.
    """
    import_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig

    read = _RecordingDict({key: value for key, value in merged.items() if key != "train_batch_size"})
    try:
        DeepSpeedConfig(read)
    except Exception as error:  # noqa: BLE001 - DeepSpeed may raise anything: TypeError, AssertionError, its own
        raise UserError(
            f"training.deepspeed={path}: DeepSpeed cannot read it: {_reason(error)} Change the file."
        ) from None
    for key in theirs:
        near = difflib.get_close_matches(key, read.names, n=1, cutoff=0.8)
        if near and key not in read.names:
            raise UserError(f"{path} sets {key!r}, which DeepSpeed does not know; did you mean {near[0]!r}?")


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return first_line(error)
    detail = error.errors(include_url=False)[0]
    return f"{error.title}, {'.'.join(map(str, detail['loc']))}: {detail['msg']}."


Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_OFFLOAD = ("zero_optimization.offload_optimizer.device", "zero_optimization.offload_param.device")
# The phf setting that decides each field, to name in a conflict.
_DECIDED_BY = {
    "train_batch_size": "training.batch_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.batch_size / (training.micro_batch_size * ranks)",
    "gradient_clipping": "training.gradient_clipping",
    "zero_optimization.stage": "training.zero_stage",
    **dict.fromkeys(_OFFLOAD, "training.offload"),
    "bf16.enabled": "training.precision",
    "fp16.enabled": "training.precision",
}
_OURS_ALONE = {
    "optimizer": "training.learning_rate, weight_decay and adam_*",
    "scheduler": "training.schedule, warmup_ratio and min_learning_rate_ratio",
    "tensorboard": "tracking.tensorboard",
    "bfloat16": "training.precision",
    "amp": "training.precision",
    "zero_allow_untested_optimizer": "phf itself",
}

_HARM = "an update whose loss or gradient is not finite would be applied"
# Fields that must stay on, and what would happen without them.
_ALWAYS_ON = {
    "bf16.check_grad_overflow": _HARM,
    "zero_optimization.compute_grad_norm": _HARM,
    "managed_gradient_accumulation": "every micro-batch would be an update of its own",
}

# Fields that do not affect results: logging, profiling, and where offloaded states are kept.
_NO_EFFECT = (
    "aio",
    "comet",
    "comms_logger",
    "csv_monitor",
    "dump_state",
    "flops_profiler",
    "memory_breakdown",
    "steps_per_print",
    "wall_clock_breakdown",
    "wandb",
    "zero_optimization.offload_optimizer.nvme_path",
    "zero_optimization.offload_optimizer.pin_memory",
    "zero_optimization.offload_param.nvme_path",
    "zero_optimization.offload_param.pin_memory",
)


def own_settings(config: TrainingConfig) -> dict[str, Any]:
    """Return the fields of the user's file that affect results, by dotted name, for comparison when a run resumes.

    Excludes fields that phf settings decide, as these are compared themselves, and fields that do not affect results.

    Raises:
        UserError: the file cannot be read.
    """
    if config.deepspeed is None:
        return {}
    found = _flat(_read(Path(config.deepspeed)), "")
    left_out = (*_DECIDED_BY, *_NO_EFFECT)
    return {
        name: value
        for name, value in sorted(found.items())
        if value != "auto" and not any(name == each or name.startswith(f"{each}.") for each in left_out)
    }


def deepspeed_config(
    config: TrainingConfig, horizon: Horizon, precision: Precision, *, parameters: int, on_gpu: bool
) -> dict[str, Any]:
    """Return the configuration for `deepspeed.initialize`.

    Args:
        config: of the training; `deepspeed` is the path of the user's JSON.
        horizon: the batch arithmetic.
        precision: of the model.
        parameters: of the model; sizes the buckets.
        on_gpu: whether the model is on a GPU.

    Raises:
        UserError: the user's file cannot be read, is refused by DeepSpeed, conflicts with a phf setting, or disables
            something that training depends on.
    """
    if precision != "fp32" and config.zero_stage == 0:
        raise UserError(
            f"training.zero_stage=0 does not train correctly in {precision}: DeepSpeed's first step sees no gradients. "
            "Set training.zero_stage=1, or training.precision=fp32."
        )
    if config.skip_sigmas is not None and config.zero_stage == 0:
        raise UserError(
            "training.skip_sigmas needs ZeRO, because only then can DeepSpeed skip an update. Set "
            "training.zero_stage=1, or remove training.skip_sigmas."
        )
    if config.offload == "optimizer" and config.zero_stage == 0:
        raise UserError("training.offload=optimizer needs ZeRO. Set training.zero_stage=1, 2 or 3.")
    if config.offload == "parameters" and config.zero_stage != 3:
        raise UserError(
            "training.offload=parameters needs ZeRO stage 3. Set training.zero_stage=3, or training.offload=optimizer."
        )
    if config.compile and config.zero_stage == 3:
        raise UserError(
            "training.compile does not work with ZeRO stage 3, which fetches parameters by hooks at every module, and "
            "each hook breaks the graph. Set training.zero_stage=1 or 2, or training.compile=false."
        )
    decided: dict[str, Any] = {
        "train_batch_size": horizon.batch_size,
        "train_micro_batch_size_per_gpu": horizon.micro_batch_size,
        "gradient_accumulation_steps": horizon.accumulation,
        # DeepSpeed clips at 1.0 by default; 0.0 means never.
        "gradient_clipping": config.gradient_clipping,
        "zero_optimization": {"stage": config.zero_stage, **_offload(config, on_gpu=on_gpu)},
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
    }
    merged = _merge(_defaults(parameters, precision, on_gpu=on_gpu), {})
    if config.deepspeed is None:
        return _merge(merged, decided)
    path = Path(config.deepspeed)
    theirs = _check_conflicts(_read(path), decided, path, "")
    merged = _merge(_merge(merged, theirs), decided)
    check_deepspeed(path, theirs, merged)
    return merged


def warn_rounded_gradients(deepspeed: Mapping[str, Any], path: str | None) -> str | None:
    """Return a warning if bf16 gradients are summed in bf16, which only the user's own file can set.

    Args:
        deepspeed: from `deepspeed_config`.
        path: of the user's file.
    """
    dtype = deepspeed.get("data_types", {}).get("grad_accum_dtype")
    if not deepspeed["bf16"]["enabled"] or dtype == "fp32":
        return None
    return (
        f"Warning: {path} sets data_types.grad_accum_dtype to {dtype!r}: sums of gradients are rounded to 8 bits with "
        "each micro-batch, so that an update depends on how a batch is cut. Without it they are summed in fp32."
    )


def _defaults(parameters: int, precision: Precision, *, on_gpu: bool) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage3_gather_16bit_weights_on_model_save": True}
    if not on_gpu:
        # The default buckets, 2 GB, are allocated in each step, and copying gradients into them is pointless without a
        # queue of kernels to overlap with: it took 20 % of a step at 30 M parameters. DeepSpeed needs an even number.
        whole = parameters + parameters % 2
        zero |= {
            "reduce_bucket_size": whole,
            "allgather_bucket_size": whole,
            "contiguous_gradients": False,
            "overlap_comm": False,
        }
    return {
        "zero_optimization": zero,
        # DeepSpeed would sum in bf16, where a micro-batch's gradient is lost if the sum is 256 times as large.
        **({"data_types": {"grad_accum_dtype": "fp32"}} if precision == "bf16" else {}),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def _offload(config: TrainingConfig, *, on_gpu: bool) -> dict[str, Any]:
    away = {"device": "cpu", "pin_memory": on_gpu}
    found = {} if config.offload == "none" else {"offload_optimizer": away}
    return {**found, "offload_param": away} if config.offload == "parameters" else found


def _read(path: Path) -> dict[str, Any]:
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read training.deepspeed={path}: {error.strerror or error}.") from None
    except ValueError as error:
        raise UserError(f"training.deepspeed={path} is not valid JSON: {error}.") from None
    if not isinstance(theirs, dict):
        raise UserError(f"training.deepspeed={path} must hold a JSON object, not a {type(theirs).__name__}.")
    for key, setting in _OURS_ALONE.items():
        if theirs.get(key) not in (None, "auto"):
            raise UserError(f"{path} sets {key!r}, but {setting} decides it. Remove it from the file.")
        theirs.pop(key, None)
    checkpoint = theirs.get("checkpoint")
    if isinstance(checkpoint, dict) and checkpoint.get("writer"):
        raise UserError(
            f"{path} sets checkpoint.writer, but phf itself writes checkpoints. Remove it from the file; "
            "training.save_async=true writes them in the background."
        )
    return theirs


def _check_conflicts(theirs: Mapping[str, Any], decided: Mapping[str, Any], path: Path, prefix: str) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in theirs.items():
        ours, name = decided.get(key), prefix + key
        if isinstance(value, dict):
            kept[key] = _check_conflicts(value, ours if isinstance(ours, dict) else {}, path, f"{name}.")
        elif value == "auto":
            continue
        elif isinstance(ours, dict):
            raise UserError(f"{path} sets {name} to {value!r}, where DeepSpeed has an object of settings. Change it.")
        elif name in _ALWAYS_ON and value is not True:
            raise UserError(f"{path} sets {name} to {value!r}, so that {_ALWAYS_ON[name]}. Remove it from the file.")
        elif name in _OFFLOAD and ours is None:
            # Without training.offload the file decides: it supports devices that the setting does not.
            kept[key] = value
        elif name in _DECIDED_BY and value != ours:
            raise UserError(
                f"{path} sets {name} to {value!r}, but {_DECIDED_BY[name]} makes it {ours!r}. "
                'Change one of them, or write "auto" in the file.'
            )
        else:
            kept[key] = value
    return kept


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged
