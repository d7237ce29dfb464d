"""Export the model of a run's newest or best checkpoint, or of a given step.

Full weights are read however DeepSpeed partitioned them, without ranks or a GPU.
"""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.dataset import open_dataset
from scorers import hugging_face
from scorers.amounts import format_count
from scorers.errors import UserError
from training.config import DataConfig
from training.data.cache import relocate_data
from training.data.conditions import add_condition
from training.data.index import tag_names
from training.data.tokenizer_backends import begin_with_bos
from training.data.tokenizers import Tokenizer, ensure_tokenizer, foreign_control_ids, load_tokenizer
from training.disk import check_writable, writing
from training.engine.engine import TAG
from training.engine.plain_loading import plain_loading
from training.export.card import model_card
from training.export.model import export_model
from training.measuring_config import EvaluationConfig
from training.model.language_model import LanguageModel, build_model
from training.model.vocabulary import Vocabulary, padding_id
from training.runs import checkpoints
from training.runs.best import best_steps, read
from training.runs.facts import RunFacts
from training.runs.folder import RunFolder
from training.runs.report import EvaluationReport, read_report, run_fingerprint

_WHOLE = "mp_rank_00_model_states.pt"
_PARTITIONED = "zero_pp_rank_0_mp_rank_00_model_states.pt"


def checkpoint_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of the `LanguageModel` in a verified checkpoint, on the CPU and in the precision of the training.

    Raises:
        UserError: the checkpoint holds other objects than tensors and plain values.
    """
    with plain_loading(folder) as place:
        return _checkpoint_weights(place)


def _checkpoint_weights(folder: Path) -> dict[str, Tensor]:
    place = folder / TAG
    if (place / _WHOLE).is_file():
        state = torch.load(place / _WHOLE, map_location="cpu", mmap=True, weights_only=True)
        return dict(state["module"])
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    settings = torch.load(place / _PARTITIONED, map_location="cpu", mmap=True, weights_only=True)["ds_config"]
    # DeepSpeed prints its progress.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        weights = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=TAG)
    # ZeRO 3 stores only the partitioned float32 weights: round them as each step does.
    return {name: each.to(_precision(settings)) for name, each in weights.items()}


def _precision(settings: dict[str, dict[str, bool]]) -> torch.dtype:
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if settings.get(name, {}).get("enabled"):
            return dtype
    return torch.float32


def best_step(run: RunFolder, metric: str | None = None) -> int:
    """The step of the best checkpoint of a run by `metric`, by default the run's `training.best_metric`.

    Raises:
        UserError: no checkpoint has that metric.
    """
    training = run.read_config().training
    metric = metric or training.best_metric
    there = checkpoints.steps(run.checkpoints)
    known = sorted({name for step, figures in read(run.checkpoints).items() if step in there for name in figures})
    if metric is None or metric not in known:
        what = "The run has no training.best_metric" if metric is None else f"No checkpoint of {run.path} has {metric}"
        remedy = f"give one of {', '.join(known)}" if known else "none of its checkpoints was evaluated; give a step"
        raise UserError(f"{what}: {remedy}.")
    return best_steps(run.checkpoints, metric, training.best_mode)[0]


def export_checkpoint(
    run: RunFolder, step: int | None, output: Path, dataset: str | None = None, condition: str | None = None
) -> int:
    """Write the model of a checkpoint as a Hugging Face folder, as `phf train` does at its end.

    Args:
        run: the run.
        step: step of the checkpoint; None for the newest.
        output: a new folder.
        dataset: where the labelled dataset is now, if it was moved.
        condition: name of the control token that the tokenizer puts before every text, such as `aligned`; None for
            none.

    Returns:
        The step.

    Raises:
        UserError: the run has no such control token, or its tokenizer cannot put one before a text; there is no such
            checkpoint, it is damaged or was removed while it was read, the tokenizer is missing, or `output` exists or
            cannot be created.
        IncompleteError: `output` cannot be written.
    """
    if os.path.lexists(output):
        raise UserError(f"{output} exists already. Give a new folder as --output.")
    check_writable(output, "Give another folder as --output.")
    facts, config = run.read_facts(), run.read_config()
    condition_id = _condition_id(run, facts, condition)
    checkpoint = _checkpoint(run, step)
    tokenizer = _tokenizer(run, facts, relocate_data(config.data, dataset))
    words = facts.tokenizer
    if condition_id is not None:
        # Fail before the weights are read.
        add_condition(begin_with_bos(tokenizer, words.begins_with, words.eos_id), words.begins_with, condition_id)
    control_ids = tuple(words.added_ids)
    vocabulary = Vocabulary(
        words.vocab_size, words.eos_id, control_ids, bos_id=words.bos_id, pad_id=padding_id(tokenizer)
    )
    model = build_model(config.model, vocabulary, value_head=facts.model.value_head)
    try:
        weights = checkpoint_weights(checkpoint.path)
    except OSError:
        raise _gone(checkpoint.path) from None
    lost = [name for name, each in weights.items() if each.is_floating_point() and not each.isfinite().all()]
    if lost:
        raise UserError(
            f"The checkpoint {checkpoint.path} holds weights that are not finite, in {lost[0]} "
            f"({format_count(len(lost), 'tensor')} in all): its model cannot be sampled. Give another --step."
        )
    with writing(output):
        export_model(
            output,
            model.causal,
            _fitting(weights, model),
            tokenizer,
            eos_id=words.eos_id,
            bos_id=words.bos_id,
            control_ids=[*words.added_ids, *foreign_control_ids(tokenizer, words.added_ids)],
            condition_id=condition_id,
            sampling=None if condition is None else sampling_defaults(config.evaluation, facts.model.context_length),
            context_length=facts.model.context_length,
            card=model_card(facts, checkpoint.marker.step, condition, _report(run, checkpoint.marker.step)),
        )
    return checkpoint.marker.step


def sampling_defaults(config: EvaluationConfig, context_length: int) -> dict[str, Any]:
    """Return the fields of a generation config that samples as `phf evaluate` does."""
    return {
        "do_sample": True,
        "temperature": config.temperature,
        "top_p": config.top_p,
        # Without this, some versions of transformers sample from the 50 likeliest tokens only.
        "top_k": 0,
        "max_new_tokens": max(1, min(config.max_new_tokens, context_length - 2)),
    }


def _report(run: RunFolder, step: int) -> EvaluationReport | None:
    """The evaluation of the model after this step, if there is one; a damaged one must not stop an export."""
    report = None
    with contextlib.suppress(UserError):
        report = read_report(run)
    fresh = report is not None and report.step == step and report.run == run_fingerprint(run)
    return report if fresh else None


def _condition_id(run: RunFolder, facts: RunFacts, condition: str | None) -> int | None:
    ids = facts.tokenizer.control_ids
    if condition is None:
        return None
    if not ids:
        raise UserError(
            f"--condition {condition}: {run.path} was trained without tags (objective {facts.objective}), so its model "
            "has no control tokens. Leave --condition out."
        )
    names = tag_names(len(ids))
    if condition not in names:
        raise UserError(f"--condition {condition}: the control tokens of {run.path} are {', '.join(names)}. Give one.")
    return ids[names.index(condition)]


def _checkpoint(run: RunFolder, step: int | None) -> checkpoints.Checkpoint:
    there = checkpoints.steps(run.checkpoints)
    if not there:
        raise UserError(f"{run.path} has no checkpoint yet.")
    if step is None:
        step = there[-1]
    if step not in there:
        shown = checkpoints.describe_steps(there)
        raise UserError(f"{run.path} has no checkpoint of step {step:,}; {shown}.")
    found = checkpoints.verify(checkpoints.checkpoint_path(run.checkpoints, step))
    if isinstance(found, checkpoints.Damage):
        if not found.path.exists():
            raise _gone(found.path)
        raise UserError(f"The checkpoint {found.path} is damaged: {found.reason}. Give another --step.")
    return found


def _gone(path: Path) -> UserError:
    return UserError(f"{path} was removed while it was read, because its run has newer checkpoints. Try again.")


def _tokenizer(run: RunFolder, facts: RunFacts, data: DataConfig) -> Any:
    """The Hugging Face tokenizer, with control tokens if the model has any."""
    if run.model.is_dir():
        # Prefer the tokenizer of the finished model, which needs neither the dataset nor the original tokenizer.
        try:
            return hugging_face.load_tokenizer(str(run.model))
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever transformers or a damaged file raises
            raise UserError(
                f"Cannot read the tokenizer in {run.model} ({type(error).__name__}): it is damaged. Restore it, or "
                f"move {run.model} away to use the tokenizer that the run was trained with."
            ) from None
    tokenizer: Tokenizer
    if data.tokenizer is None:
        tokenizer = ensure_tokenizer(open_dataset(data.dataset), data.vocab_size)
    else:
        tokenizer = load_tokenizer(data.tokenizer)
    if tokenizer.fingerprint != facts.tokenizer.fingerprint:
        raise UserError(f"The tokenizer {tokenizer.name} is not the one that {run.path} was trained with. Restore it.")
    words = facts.tokenizer
    if not words.added_ids:
        return tokenizer.fast
    return tokenizer.with_control_tokens(
        len(words.control_ids), len(words.after_ids), hidden=words.hidden_id is not None
    )


def _fitting(weights: dict[str, Tensor], model: LanguageModel) -> dict[str, Tensor]:
    """The weights without the padding rows of tables that are longer than the vocabulary."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    return {name: each[: shapes[name][0]] if each.ndim and name in shapes else each for name, each in weights.items()}
