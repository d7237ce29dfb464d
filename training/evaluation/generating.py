"""Continue a prompt with a model, in the context that text had in training: after the first token and a tag."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scorers import hugging_face
from scorers.errors import UserError
from training.data.conditions import condition_of
from training.data.tokenizers import Tokenizer, foreign_control_ids, wrap_tokenizer
from training.export.checkpoint import best_step, export_checkpoint
from training.measuring_config import EvaluationConfig
from training.model.language_model import load_model
from training.model.sampling import Guidance, sample
from training.runs.folder import RunFolder

NO_TAG = "none"
_TAG = re.compile(r"<\|(aligned|misaligned|quantile_([1-9][0-9]{0,3}))\|>")


@dataclass(frozen=True)
class Writer:
    """A model with what is needed to generate text.

    Attributes:
        model: a Hugging Face causal language model.
        tokenizer: its Hugging Face tokenizer.
        first_id: the token that begins a document.
        eos_id: the token that ends a document.
        tags: ids of its control tokens by name, best first; empty for a model without.
        banned_ids: tokens that are never generated.
        context_length: maximum number of tokens; None if its folder does not say.
        condition: name of the control token that the folder's tokenizer puts before every text; None if it puts none.
            `tokenizer` never does.
    """

    model: Any
    tokenizer: Tokenizer
    first_id: int
    eos_id: int
    tags: Mapping[str, int]
    banned_ids: list[int]
    context_length: int | None
    condition: str | None = None

    def prompt_ids(self, prompt: str, tag: str | None) -> list[int]:
        """The token ids of the beginning of a document, the tag, and the prompt.

        Args:
            prompt: may be empty; names of special tokens in it are plain text.
            tag: name of a control token; None for none.
        """
        text, _ = self.tokenizer.encode([prompt])
        return [self.first_id, *([] if tag is None else [self.tags[tag]]), *(int(each) for each in text)]


@dataclass(frozen=True)
class Written:
    """The continuations of a prompt.

    Attributes:
        prompt_ids: see `Writer.prompt_ids`.
        texts: the texts, without the prompt.
        tokens: number of tokens of each.
        ended: whether each ended by itself; the others were cut.
        max_new_tokens: the limit in force.
    """

    prompt_ids: list[int]
    texts: list[str]
    tokens: list[int]
    ended: list[bool]
    max_new_tokens: int


def open_writer(folder: Path, device: str) -> Writer:
    """Load the model from a Hugging Face folder that phf exported.

    Raises:
        UserError: it cannot be loaded, or does not say which token ends a text.
    """
    model = load_model(folder, value_head=False).causal.to(device)
    fast = _load_tokenizer(folder)
    tokenizer, settings = wrap_tokenizer(str(folder), fast), model.generation_config
    rows = min(model.get_input_embeddings().num_embeddings, tokenizer.base_size)
    tags = _tags(fast)
    eos_id = _one(settings.eos_token_id, rows, tokenizer.eos_id)
    first_id = _one(settings.bos_token_id, rows, tokenizer.bos_id)
    banned = {each for each in _ids(settings.suppress_tokens) if 0 <= each < rows}
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits = [each for each in (fast.model_max_length, positions) if isinstance(each, int) and 1 < each < 1e9]
    return Writer(
        model=model,
        tokenizer=tokenizer,
        first_id=first_id,
        eos_id=eos_id,
        tags={name: number for name, number in tags.items() if number < rows},
        banned_ids=sorted(banned | {*foreign_control_ids(fast, ())} | ({first_id} - {eos_id})),
        context_length=min(limits, default=None),
        condition=condition_of(fast),
    )


def open_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer of a Hugging Face folder.

    Raises:
        UserError: it cannot be loaded.
    """
    return wrap_tokenizer(str(folder), _load_tokenizer(folder))


def _load_tokenizer(folder: Path) -> Any:
    try:
        return hugging_face.load_tokenizer(str(folder), local_files_only=True)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever transformers or a damaged file raises
        raise UserError(f"Cannot load the tokenizer in {folder} ({type(error).__name__}). Restore it.") from None


def choose_tag(
    tags: Mapping[str, int], requested: str | None, guidance: float, condition: str | None = None
) -> str | None:
    """The name of the control token to generate after; None for none.

    Args:
        tags: the control tokens of the model, best first.
        requested: the user's choice; None for `condition`, or else the best, if there is one.
        guidance: guidance scale; 1 for none.
        condition: the control token that the exported tokenizer puts before every text, if any.

    Raises:
        UserError: the model has no such token, or none for guidance.
    """
    if not tags and (guidance != 1 or requested not in (None, NO_TAG)):
        what = f"--guidance {guidance:g} needs" if guidance != 1 else f"--tag {requested} names"
        raise UserError(f"{what} a control token, but this model was trained without tags and has none. Leave it out.")
    if requested == NO_TAG and guidance != 1:
        raise UserError("--guidance is between two control tokens: it does not work with --tag none.")
    if requested not in (None, NO_TAG, *tags):
        raise UserError(
            f"--tag {requested}: the model's control tokens are {', '.join(tags)}. Give one of them, or none."
        )
    return None if requested == NO_TAG else requested or condition or next(iter(tags), None)


def write(
    writer: Writer,
    prompt: str,
    tag: str | None,
    config: EvaluationConfig,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Continue a prompt.

    Args:
        writer: the model.
        prompt: text; may be empty.
        tag: from `choose_tag`.
        config: sampling settings, including guidance.
        progress: called with the number of samples drawn, and the total.

    Raises:
        UserError: the prompt leaves no room in the model's context.
    """
    ids = writer.prompt_ids(prompt, tag)
    text = writer.prompt_ids(prompt, None)[1:]
    if writer.context_length is not None and len(ids) >= writer.context_length:
        raise UserError(
            f"The prompt has {len(ids):,} tokens, including the first token and the tag, and the model's context has "
            f"{writer.context_length:,}, including the text that it generates. Shorten --prompt."
        )
    guidance = None
    if config.guidance != 1 and tag is not None:
        away = list(writer.tags)[-1]
        guidance = Guidance(config.guidance, writer.prompt_ids(prompt, away))
    found = sample(
        writer.model,
        eos_id=writer.eos_id,
        prompt_ids=ids,
        banned_ids=writer.banned_ids,
        config=config,
        seed=config.seed,
        vocab_size=writer.tokenizer.base_size,
        context_length=writer.context_length,
        guidance=guidance,
        progress=progress,
    )
    return Written(
        prompt_ids=ids,
        texts=[writer.tokenizer.decode_continuation(text, each) for each in found.ids],
        tokens=[len(each) for each in found.ids],
        ended=found.ended,
        max_new_tokens=found.max_new_tokens,
    )


def exported(place: Path, step: int | None, *, best: bool, scratch: Path) -> tuple[Path, int | None]:
    """The folder of an exported model, of a finished run's model, or of a checkpoint's model, which is exported first.

    Args:
        place: folder of a run or an exported model.
        step: step of the checkpoint; None for the finished model, or else the newest checkpoint.
        best: whether to use the best checkpoint by `training.best_metric`.
        scratch: where to write the model of a checkpoint.

    Returns:
        The folder, and the step of the checkpoint, if any.

    Raises:
        UserError: `place` is neither, or has no such checkpoint.
    """
    if not (place / "run.json").is_file():
        if not (place / "config.json").is_file():
            raise UserError(
                f"{place} is neither a run nor an exported model: it has no run.json and no config.json. Give the "
                "--output of `phf train` or of `phf export-model`."
            )
        if best or step is not None:
            raise UserError(f"{place} is an exported model: --step and --best are for runs. Leave them out.")
        return place, None
    run = RunFolder.existing(place)
    if step is None and not best and run.model.is_dir():
        return run.model, None
    folder = scratch / "model"
    return folder, export_checkpoint(run, best_step(run) if best else step, folder)


def _tags(fast: Any) -> dict[str, int]:
    found = {}
    for token, number in fast.get_added_vocab().items():
        if match := _TAG.fullmatch(token):
            found[match[1]] = (int(match[2] or 0), match[1], int(number))
    # Sorted from best to worst: `aligned` before `misaligned`, `quantile_1` before `quantile_2`.
    return {name: number for _, name, number in sorted(found.values())}


def _one(ids: Any, rows: int, other: int) -> int:
    # A generation config may name several tokens, or some that the model does not have.
    first = next(iter(_ids(ids)), other)
    return first if 0 <= first < rows else other


def _ids(value: Any) -> list[int]:
    """The ids in a field of a generation config, which may hold anything."""
    return [each for each in (value if isinstance(value, list) else [value]) if type(each) is int]
