"""The network: a Hugging Face causal language model, with a value head if the objective needs one."""

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scorers import hugging_face
from scorers.errors import UserError
from training.config import ModelConfig
from training.linear_loss import linear_loss
from training.model.build_network import build_initialised, check_context, first_line, known_ids, load_pretrained
from training.model.masking import document_positions
from training.model.router_loss import METRIC, RouterLoss
from training.model.trial import check_document_masking, explain_failure, has_linear_head
from training.model.vocabulary import Padding, Vocabulary, initialise_control_rows
from training.objectives import Objective

# In a separate folder, because vLLM and others load every `*.safetensors` beside a config.
VALUE_HEAD_FILE = "value_head/weights.safetensors"
_OLD_VALUE_HEAD_FILE = "value_head.safetensors"


class ValueHead(nn.Module):
    """V(t) = -sigmoid(w . h(t)): the expected reward from position t on, in (-1, 0); zero-initialised, without bias.

    Source: PHF (arXiv 2302.08582), section 2, AWR.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return values float32 [B, T] for hidden states [B, T, width]."""
        return -torch.sigmoid(nn.functional.linear(hidden, self.weight).squeeze(-1).float())


class LanguageModel(nn.Module):
    """A causal language model whose single `forward` runs every head, as DeepSpeed requires.

    Args:
        causal: the Hugging Face model.
        value_head: whether the objective needs values.
        padding: of its embeddings; None if they have none.
        documents_begin_with: the token that documents begin with, to mask attention between documents; None for no
            masking.

    Attributes:
        causal: the Hugging Face model.
        value_head: None if the objective does not need it.
        padding: padding rows of the embeddings.
        router: the loss of a mixture of experts' routers.
        has_linear_head: whether the logits are exactly the output embedding's product with the last hidden state, as in
            most architectures; then the loss is computed without holding all logits.
    """

    def __init__(
        self,
        causal: Any,
        *,
        value_head: bool = False,
        padding: Padding | None = None,
        documents_begin_with: int | None = None,
    ) -> None:
        super().__init__()
        self.causal = causal
        # OPT's output embedding may be narrower than its hidden states.
        self.value_head = ValueHead(causal.get_output_embeddings().weight.shape[1]) if value_head else None
        self.padding = padding or Padding(causal, 1)
        self.has_linear_head = False
        self._documents_begin_with = documents_begin_with
        self.router = RouterLoss(causal)
        self._body: Callable[..., tuple[Tensor, Tensor | None]] = self._run_body
        self._hidden: Tensor | None = None
        if value_head:
            # The input of the output embedding, in every architecture: after the final norm, before logit scaling.
            causal.get_output_embeddings().register_forward_pre_hook(self._keep_hidden)

    def compile_body(self) -> None:
        """Compile the network between tokens and loss with torch.compile; the architecture needs a linear head.

        Only for training: sampling calls the model with ever-changing shapes.

        Raises:
            UserError: the head is not linear.
        """
        if not self.has_linear_head:
            raise UserError(
                f"training.compile: the logits of {type(self.causal).__name__} are not just a product with its output "
                "embedding. Set training.compile to false."
            )
        _keep_compiled_code_private()
        self._body = torch.compile(self._run_body)

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Compute without torch.compile inside the block: compiling for rare shapes does not pay."""
        body, self._body = self._body, self._run_body
        try:
            yield
        finally:
            self._body = body

    def _keep_hidden(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._hidden = inputs[0]

    def forward(
        self,
        input_ids: torch.Tensor,
        objective: Objective | None = None,
        scores: torch.Tensor | None = None,
        count: int | None = None,
    ) -> Any:
        """Return logits [B, T, V], where `logits[:, t]` predicts token t+1, and values float32 [B, T] or None.

        With an objective, return its loss and metrics instead, as a pair (see `training.objectives.Loss`).

        Args:
            input_ids: int64 [B, T], without padding.
            objective: the loss to compute.
            scores: [B, T], of the tokens; for the loss.
            count: predicted tokens to divide by; for the loss, see `Objective.loss`.
        """
        if objective is None:
            return self._logits(input_ids)[:2]
        if scores is None:
            raise ValueError("a loss needs scores")
        if self.has_linear_head:
            hidden, routed = self._body(*self._with_positions(input_ids))
            hidden, self._hidden = hidden.reshape(*input_ids.shape, -1), None
            head = self.causal.get_output_embeddings()
            result = linear_loss(
                objective,
                hidden,
                head.weight,
                input_ids,
                scores,
                bias=getattr(head, "bias", None),
                values=None if self.value_head is None else self.value_head(hidden),
                count=count,
                vocabulary=self.padding.size,
            )
        else:
            logits, values, routed = self._logits(input_ids, routed=self.router.weight is not None)
            result = objective.loss(logits, input_ids, scores, values, count=count)
        if routed is None or self.router.weight is None:
            return result.loss, result.metrics
        # Scale by this part's share of the global batch, so that the parts add up to their mean.
        predicted = input_ids[:, 1:].numel()
        routed = routed * (predicted / (count or predicted))
        return result.loss + self.router.weight * routed, {**result.metrics, METRIC: routed.detach()}

    def _logits(self, input_ids: Tensor, *, routed: bool = False) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return logits and values as `forward` does, and the router's loss if `routed`."""
        ids, positions = self._with_positions(input_ids)
        options = {"output_router_logits": True} if routed else {}
        output = self.causal(input_ids=ids, use_cache=False, **options, **_position_arguments(positions))
        logits = output.logits.reshape(*input_ids.shape, -1)
        loss = self.router.from_output(output) if routed else None
        if self.value_head is None:
            return logits, None, loss
        hidden, self._hidden = self._hidden, None
        return logits, self.value_head(hidden).reshape(input_ids.shape), loss

    def _run_body(self, input_ids: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the last hidden states [B, T, D], and the router's loss if the config enables it."""
        if self.router.weight is not None:
            return self.router.run(input_ids=input_ids, **_position_arguments(positions))
        output = self.causal.base_model(input_ids=input_ids, use_cache=False, **_position_arguments(positions))
        return output.last_hidden_state, None

    def _with_positions(self, input_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._documents_begin_with is None:
            return input_ids, None
        positions = document_positions(input_ids, self._documents_begin_with)
        # Flash Attention separates documents of different lengths only within a single row. Checked here, because the
        # model gets its attention after it was built (`use_attention`).
        if "flash" in (self.causal.config._attn_implementation or ""):
            return input_ids.reshape(1, -1), positions.reshape(1, -1)
        return input_ids, positions


def build_model(
    config: ModelConfig,
    vocabulary: Vocabulary,
    *,
    value_head: bool = False,
    context_length: int | None = None,
    rows_multiple: int | None = 1,
    document_masking: bool = False,
    skeleton: bool = False,
) -> LanguageModel:
    """Build the model in float32 on the CPU; the result depends on the state of torch's generator.

    The embedding has a row for every token of the vocabulary. Rows of new control tokens start at the mean of the
    others plus small noise, so that a tag is nearly neutral at first. Padding is added last, so that it changes no
    weights.

    Args:
        config: names the model.
        vocabulary: of the tokenizer.
        value_head: whether the objective needs values.
        context_length: refused if the model has fewer positions.
        rows_multiple: pad the embeddings to a multiple of this many rows; None is 128 if the architecture allows it
            (`training.model.vocabulary.Padding`).
        document_masking: tokens attend only to their own document (`training.model.masking`).
        skeleton: build the modules on torch's meta device, without weights; the head is not checked for linearity.

    Raises:
        UserError: the name is unknown, the config cannot be built, the context is too long, or the architecture does
            not support a requested feature.
    """
    if context_length is not None:
        check_context(config, context_length)
    with torch.device("meta") if skeleton else nullcontext():
        causal = _causal(config, vocabulary, skeleton=skeleton)
        with explain_failure(causal, "be split into embeddings and layers"):
            model = LanguageModel(
                causal,
                value_head=value_head,
                padding=Padding(causal, rows_multiple),
                documents_begin_with=vocabulary.begins_with if document_masking else None,
            )
    if not skeleton:
        with explain_failure(causal, "compute two tokens"):
            model.padding.check(causal)
        model.has_linear_head = has_linear_head(causal)
        if document_masking:
            check_document_masking(causal)
    return model


def _causal(config: ModelConfig, vocabulary: Vocabulary, *, skeleton: bool) -> Any:
    new = vocabulary.control_ids
    if config.pretrained:
        causal = load_pretrained(config, skeleton=skeleton)
        if not skeleton:
            new = _untrained(config, vocabulary, causal.get_input_embeddings().num_embeddings)
        if causal.get_input_embeddings().num_embeddings < vocabulary.size:
            causal.resize_token_embeddings(vocabulary.size, mean_resizing=False)
        vocabulary.set_bos_and_eos(causal.config)
    else:
        causal = build_initialised(config, vocabulary)
    if not skeleton:
        initialise_control_rows(causal, new)
    return causal


def _untrained(config: ModelConfig, vocabulary: Vocabulary, rows: int) -> tuple[int, ...]:
    """Return the control tokens that a checkpoint with this many rows has not learnt; a conditional model has."""
    base = rows if vocabulary.base_size is None else vocabulary.base_size
    new = tuple(each for each in vocabulary.control_ids if each >= min(base, rows))
    if any(each < rows for each in new):
        # Spare rows, as in Pythia and Qwen, or a conditional model that continues with its original tokenizer.
        named = known_ids(config)
        new = tuple(each for each in new if each >= rows or each not in named)
    return new


def _position_arguments(positions: Tensor | None) -> dict[str, Tensor]:
    # Not every architecture accepts positions.
    return {} if positions is None else {"position_ids": positions}


def checkpoint_activations(model: LanguageModel) -> None:
    """Keep only each layer's input, and recompute the layer in the backward pass: less memory, a third more time.

    Raises:
        UserError: the architecture does not support it.
    """
    try:
        model.causal.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError:
        raise UserError(
            f"training.activation_checkpointing: {type(model.causal).__name__} does not support it. "
            "Set training.activation_checkpointing to false."
        ) from None


def load_model(folder: Path, *, value_head: bool | None = None) -> LanguageModel:
    """Load an exported model folder (`training.export.model`) in float32.

    Args:
        folder: a Hugging Face folder.
        value_head: whether to load the value head; None if the folder has one.

    Raises:
        UserError: the folder is missing or cannot be loaded.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    file = folder / VALUE_HEAD_FILE
    if not file.is_file():
        file = folder / _OLD_VALUE_HEAD_FILE
    with_values = file.is_file() if value_head is None else value_head
    try:
        causal = hugging_face.load_model(AutoModelForCausalLM, str(folder), local_files_only=True, dtype=torch.float32)
        model = LanguageModel(causal, value_head=with_values)
        if model.value_head is not None:
            model.value_head.load_state_dict(load_file(file))
        # Run it once: inconsistent sizes, such as heads of negative width, only show here.
        with torch.no_grad():
            causal(input_ids=torch.zeros((1, 2), dtype=torch.long), use_cache=False)
    except SafetensorError as error:
        raise UserError(
            f"The weights in {folder} are damaged or truncated ({first_line(error).rstrip('.')}). Restore them, or "
            "export the model of a checkpoint with `phf export-model`."
        ) from None
    except (
        *(ImportError, OSError, ValueError, TypeError, AttributeError),
        *(RuntimeError, LookupError, ArithmeticError, AssertionError),
    ) as error:
        raise UserError(f"Cannot load a model from {folder}: {first_line(error)}") from None
    return model


def _keep_compiled_code_private() -> None:
    """Keep torch from loading compiled code from a folder that another user of the machine can write to.

    By default it keeps code and pickles in the shared temporary folder, under a name that anybody can create first.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    place = default_cache_dir()
    with suppress(FileExistsError):
        Path(place).mkdir(0o700)
    found = os.lstat(place)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="phf-torchinductor-")
