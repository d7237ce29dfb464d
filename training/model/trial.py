"""Try before step 0 what a run needs of a network, instead of keeping a list of architectures.

The trials run on the network itself, in float32 on the CPU, before DeepSpeed wraps it. A smaller model of the same kind
would need to be built besides, and no config says which of its sizes may shrink. With several ranks, only rank 0 runs
them; with ZeRO 3 it holds the whole weights at that point. They cost a few passes of one block: gradients are taken
with respect to the embedding's output, so that the weights have none.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scorers import hugging_face
from scorers.errors import UserError
from scorers.stopping import is_stop
from training.measuring_config import EvaluationConfig
from training.model.sampling import evaluation_mode, sample

# Tokens in passes that check causality.
_TOKENS = 24
# FLOPs of any other pass at most: above that, the block is shortened.
_FLOPS = 2.5e11
# How far a change may move earlier logits by rounding, relative to later ones. Experts compute in other shapes if they
# get other tokens: at most 1e-6 in 130 architectures. Architectures that see the future showed at least 1e-3.
_MOVED = 1e-4
_NOISE = 0.02  # standard deviation, for parameters that are all zeros
# Models up to this size, in bytes, are written and read back; of larger ones only names and shapes are compared.
_WRITTEN = 2**28


@dataclass(frozen=True)
class Tokens:
    """The tokens for trials.

    Attributes:
        size: of the vocabulary.
        begins_with, eos_id: the tokens that begin and end a document.
        special: ids that may have a meaning for a network.
        context_length: tokens per block.
    """

    size: int
    begins_with: int
    eos_id: int
    special: frozenset[int]
    context_length: int

    def rows(self, rows: int, length: int, *, others: bool = False) -> Tensor:
        """Return int64 [rows, length], spread over the vocabulary; with `others`, different at every position."""
        plain = [each for each in range(self.size) if each not in self.special]
        step = max(len(plain) // (2 * _TOKENS), 1)
        index = (torch.arange(rows * length) * 2 + others) * step
        return torch.tensor(plain)[index % (len(plain) // (2 * step) * 2 * step)].reshape(rows, length)


@contextmanager
def explain_failure(causal: Any, what: str) -> Iterator[None]:
    """Turn an error of transformers in the block into a message about the network.

    Args:
        causal: a Hugging Face causal language model.
        what: the network cannot do; follows "cannot".

    Raises:
        UserError: names the architecture, what fails, and how.
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if is_stop(error) or "allocate memory" in str(error) or "enough memory" in str(error):
            raise
        text = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        # Some architectures count positions from the padding token.
        padding = getattr(causal.config.get_text_config(decoder=True), "pad_token_id", None)
        needs = isinstance(error, TypeError) and "NoneType" in str(error) and padding is None
        remedy = "It needs a padding token, which the tokenizer does not have: use one that has it, or" if needs else ""
        raise UserError(
            f"{_describe(causal)} cannot {what}: {type(error).__name__}: {text}. "
            f"{remedy or 'Check model.overrides and data.context_length, or'} choose another architecture."
        ) from error


@torch.no_grad()
def has_linear_head(causal: Any) -> bool:
    """Whether the logits are exactly the output embedding's product with the last hidden state."""
    # Tried, because some architectures scale or cap their logits, and no list could keep up with them.
    head = causal.get_output_embeddings()
    if type(head) is not nn.Linear or causal.base_model is causal:
        return False
    with evaluation_mode(causal), explain_failure(causal, "compute four tokens"):
        ids = torch.arange(4, device=head.weight.device).unsqueeze(0)
        logits = causal(input_ids=ids, use_cache=False).logits
        hidden = getattr(causal.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
        if hidden is None or hidden.shape[-1] != head.in_features:
            return False
        return torch.allclose(head(hidden), logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def check_causal(causal: Any, tokens: Tokens) -> None:
    """Refuse a network whose logits change when later tokens change.

    Raises:
        UserError: earlier logits change, or logits are not finite.
    """
    length = min(_TOKENS, tokens.context_length)
    ids, others = tokens.rows(1, length), tokens.rows(1, length, others=True)
    with evaluation_mode(causal), _zeros_replaced(causal), explain_failure(causal, f"compute {length} tokens"):
        before = causal(input_ids=ids, use_cache=False).logits
        for first in sorted({1, length // 2, length - 1}):
            changed = torch.cat([ids[:, :first], others[:, first:]], dim=1)
            moved = (causal(input_ids=changed, use_cache=False).logits - before).abs().amax(-1).squeeze(0)
            if not bool(moved.isfinite().all()):
                raise UserError(
                    f"{_describe(causal)} has outputs that are NaN or infinite before it is trained: its weights or "
                    "model.overrides are wrong. Check them."
                )
            if moved[:first].max() > _MOVED * moved[first:].max():
                raise UserError(
                    f"{_describe(causal)} sees the future: its outputs at a token depend on later tokens, so it would "
                    "learn to copy instead of to predict. Set model.overrides.is_decoder=true or "
                    "model.overrides.is_causal=true if its config has one of them, or choose a causal architecture."
                )


@torch.no_grad()
def check_document_masking(causal: Any) -> None:
    """Check that the architecture masks attention between documents by their positions.

    Raises:
        UserError: it does not: some have no positions, or a recurrent state.
    """
    with evaluation_mode(causal):
        try:
            ids = torch.tensor([[0, 1, 2, 3, 0, 1, 3]], device=next(causal.parameters()).device)
            positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2]], device=ids.device)
            together = causal(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 4:]
            alone = causal(input_ids=ids[:, 4:], use_cache=False).logits
            apart = torch.allclose(together, alone, rtol=1e-3, atol=1e-4)
        except (TypeError, ValueError, RuntimeError):
            apart = False
    if not apart:
        raise UserError(
            f"data.document_masking: {type(causal).__name__} lets documents of a block see each other regardless of "
            "their positions. Set data.document_masking to false."
        )


def check_trains(model: Any, objective: Any, tokens: Tokens) -> None:
    """Compute the loss of a block and its gradient with respect to the embedding's output.

    Args:
        model: a `training.model.language_model.LanguageModel`, set up for training.
        objective: of `training.objectives`.
        tokens: for the block.

    Raises:
        UserError: the network cannot, the loss or gradient is not finite, or the loss is not reproducible.
    """
    causal = model.causal
    length = min(tokens.context_length, max(int(_FLOPS / (2 * _size(causal))), _TOKENS))
    ids = tokens.rows(1, length)
    scores = (torch.arange(length) % 2).float().expand(1, -1)
    embedded: list[Tensor] = []
    hook = causal.get_input_embeddings().register_forward_hook(lambda _, __, output: embedded.append(output))
    try:
        # In training mode, with dropout.
        with _restored(model), explain_failure(causal, f"be trained on {length} tokens for {objective.name}"):
            model.train()
            drawn = torch.get_rng_state()
            with torch.no_grad():
                before, _ = model(ids, objective=objective, scores=scores)
            embedded.clear()
            torch.set_rng_state(drawn)
            loss, _ = model(ids, objective=objective, scores=scores)
            gradients = torch.autograd.grad(loss, embedded, allow_unused=True)
    finally:
        hook.remove()
    reached = [each for each in gradients if each is not None]
    if not reached or not all(bool(each.isfinite().all()) for each in [loss, *reached]):
        raise UserError(
            f"{_describe(causal)} cannot be trained for {objective.name}: "
            + ("the loss or its gradient is not finite before step 0." if reached else "no gradient reaches its input.")
            + " Check model.overrides, or choose another architecture."
        )
    if not torch.allclose(before, loss, rtol=1e-4, atol=1e-6):
        raise UserError(
            f"{_describe(causal)} gives a different loss each time in training, from its own random numbers, so that "
            "no run could resume exactly from a checkpoint. Choose another architecture."
        )


def check_samples(causal: Any, tokens: Tokens) -> None:
    """Draw samples, some of which end before others.

    Raises:
        UserError: the network cannot be sampled from.
    """
    other = next(each for each in range(tokens.size) if each != tokens.eos_id and each not in tokens.special)
    # A temperature so high that both tokens are equally likely, whatever the weights are.
    config = EvaluationConfig(num_samples=4, max_new_tokens=4, batch_size=4, temperature=1e9, top_p=1.0)
    with explain_failure(causal, "be sampled from"):
        sample(
            causal,
            eos_id=tokens.eos_id,
            prompt_ids=[tokens.begins_with],
            banned_ids=[each for each in range(tokens.size) if each not in (tokens.eos_id, other)],
            config=config,
            seed=0,
            vocab_size=tokens.size,
            context_length=tokens.context_length,
        )


@torch.no_grad()
def check_reloads(model: Any, tokens: Tokens) -> None:
    """Write the network as a Hugging Face folder and read it back; compare logits, or for a large one the shapes.

    Raises:
        UserError: the reloaded network differs.
    """
    from transformers import AutoModelForCausalLM

    causal = model.causal
    weights = model.padding.remove(causal.state_dict())
    whole = sum(each.numel() * each.element_size() for each in weights.values()) <= _WRITTEN
    ids = tokens.rows(1, min(_TOKENS, tokens.context_length))
    with (
        tempfile.TemporaryDirectory(prefix="phf-trial-") as made,
        explain_failure(causal, "be exported and loaded again"),
    ):
        folder = Path(made)
        if whole:
            _write(causal, weights, folder)
            again = hugging_face.load_model(AutoModelForCausalLM, str(folder), dtype=torch.float32)
            with evaluation_mode(causal), evaluation_mode(again):
                logits, theirs = (each(input_ids=ids, use_cache=False).logits for each in (causal, again))
            same = logits.shape == theirs.shape and torch.allclose(logits, theirs, rtol=1e-4, atol=1e-5)
        else:
            causal.config.save_pretrained(folder)
            with torch.device("meta"):
                again = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                    hugging_face.load_config(str(folder)), dtype=torch.float32
                )
            same = _shapes(again.state_dict()) == _shapes(weights)
    if not same or type(again) is not type(causal):
        raise UserError(
            f"{_describe(causal)} is reloaded from its own folder as a different model ({type(again).__name__}), so "
            "that it could not be evaluated or used. Choose another architecture."
        )


def try_network(model: Any, objective: Any, tokens: Tokens, *, foreign: bool = True) -> None:
    """Try everything that a run needs of a network and `build_model` has not tried.

    Args:
        model: a `training.model.language_model.LanguageModel`.
        objective: of `training.objectives`.
        tokens: for the trials.
        foreign: False for a named size, which is known to reload correctly.

    Raises:
        UserError: names what the network cannot do.
    """
    check_causal(model.causal, tokens)
    check_trains(model, objective, tokens)
    check_samples(model.causal, tokens)
    if foreign:
        check_reloads(model, tokens)


def _write(causal: Any, weights: dict[str, Tensor], folder: Path) -> None:
    from transformers import GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # An export writes its own, and some architectures' generation configs cannot be saved.
    own, causal.generation_config = causal.generation_config, GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        causal.save_pretrained(folder, state_dict=weights)
    finally:
        causal.generation_config = own


def _shapes(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: each.shape for name, each in weights.items()}


def _size(causal: Any) -> int:
    return sum(each.numel() for each in causal.parameters())


def _describe(causal: Any) -> str:
    return f"The network {causal.config.model_type} ({type(causal).__name__})"


@contextmanager
def _zeros_replaced(causal: Any) -> Iterator[None]:
    # A layer whose last matrix is zero adds nothing, which would hide what its attention sees.
    zeros = [each for each in causal.parameters() if not bool(each.any())]
    generator = torch.Generator().manual_seed(0)
    for each in zeros:
        each.copy_(torch.randn(each.shape, generator=generator) * _NOISE)
    try:
        yield
    finally:
        for each in zeros:
            each.zero_()


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(each, each.clone()) for each in model.buffers()]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for buffer, before in buffers:
            buffer.copy_(before)
