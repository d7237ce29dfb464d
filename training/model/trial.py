"""What a network must be able to do, tried before step 0 rather than known of each architecture.

It is tried on the network itself, in float32 on the CPU, after it was built and before DeepSpeed has it. A smaller one
of the same kind would have to be built beside it, and which of its sizes may be made smaller no config says. With
several ranks, rank 0 alone tries; with ZeRO 3 it has the whole weights then. The price is that of a few passes of one
block: gradients are taken by the embedding's output alone, so that there are none of the weights.
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
from training.config import EvaluationConfig
from training.model.sampling import evaluating, sample

# Tokens of the passes that look for the future, and floating-point operations of a pass of the others at most: beyond
# it they are of a shorter block.
_TOKENS = 24
_FLOPS = 2.5e11
# Of what a change moves behind it, what it may move before it by rounding. Experts compute in other shapes where other
# tokens come to them: 1e-6 of 130 architectures at most. The least that an architecture which sees the future showed
# was 1e-3.
_MOVED = 1e-4
_NOISE = 0.02  # in place of parameters that are all zeros
# Bytes of a model that is written to try whether it is read back; of a larger one only names and shapes are compared.
_WRITTEN = 2**28


@dataclass(frozen=True)
class Tokens:
    """Which tokens a trial is made of.

    Attributes:
        size: of the vocabulary.
        begins_with, eos_id: what begins a document, and ends one.
        special: ids that may mean something to a network.
        context_length: tokens a block.
    """

    size: int
    begins_with: int
    eos_id: int
    special: frozenset[int]
    context_length: int

    def rows(self, rows: int, length: int, *, others: bool = False) -> Tensor:
        """int64 [rows, length] from all over the vocabulary; the others differ from them at every position."""
        plain = [each for each in range(self.size) if each not in self.special]
        step = max(len(plain) // (2 * _TOKENS), 1)
        index = (torch.arange(rows * length) * 2 + others) * step
        return torch.tensor(plain)[index % (len(plain) // (2 * step) * 2 * step)].reshape(rows, length)


@contextmanager
def possible(causal: Any, what: str) -> Iterator[None]:
    """Take what transformers raises in the block for a network that cannot do something.

    Args:
        causal: a Hugging Face causal language model.
        what: it cannot do then; follows "cannot".

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
        # Some count positions from the padding token.
        padding = getattr(causal.config.get_text_config(decoder=True), "pad_token_id", None)
        needs = isinstance(error, TypeError) and "NoneType" in str(error) and padding is None
        remedy = "It needs a padding token, which the tokenizer does not have: give one with it, or" if needs else ""
        raise UserError(
            f"{_named(causal)} cannot {what}: {type(error).__name__}: {text}. "
            f"{remedy or 'Check model.overrides and data.context_length, or'} choose another architecture."
        ) from error


@torch.no_grad()
def has_linear_head(causal: Any) -> bool:
    """Whether the logits are the output embedding's product with the last hidden state and nothing else."""
    # Some scale or cap their logits, which no list would keep up with.
    head = causal.get_output_embeddings()
    if type(head) is not nn.Linear or causal.base_model is causal:
        return False
    with evaluating(causal), possible(causal, "compute four tokens"):
        ids = torch.arange(4, device=head.weight.device).unsqueeze(0)
        logits = causal(input_ids=ids, use_cache=False).logits
        hidden = getattr(causal.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
        if hidden is None or hidden.shape[-1] != head.in_features:
            return False
        return torch.allclose(head(hidden), logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def check_causal(causal: Any, tokens: Tokens) -> None:
    """Change later tokens, and see whether earlier logits move.

    Raises:
        UserError: they do, or are no numbers.
    """
    length = min(_TOKENS, tokens.context_length)
    ids, others = tokens.rows(1, length), tokens.rows(1, length, others=True)
    with evaluating(causal), _nothing_hidden(causal), possible(causal, f"compute {length} tokens"):
        before = causal(input_ids=ids, use_cache=False).logits
        for first in sorted({1, length // 2, length - 1}):
            changed = torch.cat([ids[:, :first], others[:, first:]], dim=1)
            moved = (causal(input_ids=changed, use_cache=False).logits - before).abs().amax(-1).squeeze(0)
            if not bool(moved.isfinite().all()):
                raise UserError(
                    f"{_named(causal)} gives outputs that are no numbers (NaN or infinite) before it is trained: its "
                    "weights or model.overrides are damaged. Check them."
                )
            if moved[:first].max() > _MOVED * moved[first:].max():
                raise UserError(
                    f"{_named(causal)} sees the future: its outputs at a token depend on tokens that come after it, so "
                    "it would learn to copy and not to predict. Set model.overrides.is_decoder=true or "
                    "model.overrides.is_causal=true where its config has one of them, or choose a causal architecture."
                )


@torch.no_grad()
def check_documents_apart(causal: Any) -> None:
    """Try whether the architecture keeps documents apart when their positions say so.

    Raises:
        UserError: it does not: some have no positions, or a state that goes on.
    """
    with evaluating(causal):
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
            f"data.document_masking: {type(causal).__name__} lets documents of a block see each other whatever their "
            "positions are. Set it to false."
        )


def check_trains(model: Any, objective: Any, tokens: Tokens) -> None:
    """Take the loss of a block, and its gradient by the embedding.

    Args:
        model: a `training.model.language_model.LanguageModel`, with all that its training asks for.
        objective: of `training.objectives`.
        tokens: which.

    Raises:
        UserError: the network cannot, or one of them is no number.
    """
    causal = model.causal
    length = min(tokens.context_length, max(int(_FLOPS / (2 * _size(causal))), _TOKENS))
    ids = tokens.rows(1, length)
    scores = (torch.arange(length) % 2).float().expand(1, -1)
    embedded: list[Tensor] = []
    hook = causal.get_input_embeddings().register_forward_hook(lambda _, __, output: embedded.append(output))
    try:
        # As it is trained, dropout and all.
        with _as_it_was(model), possible(causal, f"be trained on {length} tokens for {objective.name}"):
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
            f"{_named(causal)} cannot be trained for {objective.name}: "
            + ("the loss or its gradient is no number before step 0." if reached else "no gradient comes to its input.")
            + " Check model.overrides, or choose another architecture."
        )
    if not torch.allclose(before, loss, rtol=1e-4, atol=1e-6):
        raise UserError(
            f"{_named(causal)} gives another loss each time while it is trained, by random numbers of its own, so that "
            "no run could go on exactly from a checkpoint. Choose another architecture."
        )


def check_samples(causal: Any, tokens: Tokens) -> None:
    """Draw samples of which some end before others.

    Raises:
        UserError: the network cannot.
    """
    other = next(each for each in range(tokens.size) if each != tokens.eos_id and each not in tokens.special)
    # So hot that each of two tokens comes in one of two cases, whatever the weights are.
    config = EvaluationConfig(num_samples=4, max_new_tokens=4, batch_size=4, temperature=1e9, top_p=1.0)
    with possible(causal, "be sampled from"):
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
    """Write the network as a Hugging Face folder, and read it back: the same logits, or of a large one the same shape.

    Raises:
        UserError: it comes back as another.
    """
    from transformers import AutoModelForCausalLM

    causal = model.causal
    weights = model.padding.remove(causal.state_dict())
    whole = sum(each.numel() * each.element_size() for each in weights.values()) <= _WRITTEN
    ids = tokens.rows(1, min(_TOKENS, tokens.context_length))
    with tempfile.TemporaryDirectory(prefix="phf-trial-") as made, possible(causal, "be exported and loaded again"):
        folder = Path(made)
        if whole:
            _write(causal, weights, folder)
            again = hugging_face.load_model(AutoModelForCausalLM, str(folder), dtype=torch.float32)
            with evaluating(causal), evaluating(again):
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
            f"{_named(causal)} comes back from its own folder as another model ({type(again).__name__}), so that it "
            "could not be evaluated or used. Choose another architecture."
        )


def try_network(model: Any, objective: Any, tokens: Tokens, *, foreign: bool = True) -> None:
    """Try all that a run will need of a network, besides what `build_model` has tried.

    Args:
        model: a `training.model.language_model.LanguageModel`.
        objective: of `training.objectives`.
        tokens: which.
        foreign: False for a size by name, of which it is known that it can be read back.

    Raises:
        UserError: what it cannot.
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
    # An export has its own, and an architecture's may not be one that can be saved.
    own, causal.generation_config = causal.generation_config, GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        causal.save_pretrained(folder, state_dict=weights)
    finally:
        causal.generation_config = own


def _shapes(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: each.shape for name, each in weights.items()}


def _size(causal: Any) -> int:
    return sum(each.numel() for each in causal.parameters())


def _named(causal: Any) -> str:
    return f"The network {causal.config.model_type} ({type(causal).__name__})"


@contextmanager
def _nothing_hidden(causal: Any) -> Iterator[None]:
    # A layer whose last matrix starts at zero adds nothing yet, whatever its attention sees.
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
def _as_it_was(model: nn.Module) -> Iterator[None]:
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
