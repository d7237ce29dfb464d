"""The network: a Hugging Face causal language model, and a value head where the objective asks for one."""

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
from training.model.masking import document_positions
from training.model.router import METRIC, RouterLoss
from training.model.sources import check_context, first_line, initialised, known_ids, pretrained
from training.model.trial import check_documents_apart, has_linear_head, possible
from training.model.vocabulary import Padding, Vocabulary, initialise_control_rows
from training.objectives import Objective

# In a folder of its own, as vLLM and others take every `*.safetensors` beside a config for the model's.
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
        """Values float32 [B, T] of hidden states [B, T, width]."""
        return -torch.sigmoid(nn.functional.linear(hidden, self.weight).squeeze(-1).float())


class LanguageModel(nn.Module):
    """A causal language model whose one `forward` runs every head, as DeepSpeed requires.

    Args:
        causal: the Hugging Face model.
        value_head: whether the objective needs values.
        padding: of its embeddings; None where they have none.
        documents_begin_with: the token that documents begin with, if they are not to see each other; None if they are.

    Attributes:
        causal: the Hugging Face model.
        value_head: None where no objective needs it.
        padding: rows under the embeddings.
        router: the loss of a mixture of experts' routers.
        has_linear_head: whether the logits are the output embedding's product with the last hidden state and nothing
            else, as in most architectures; then `loss` need not hold them all.
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
        # OPT's may be narrower than its hidden states.
        self.value_head = ValueHead(causal.get_output_embeddings().weight.shape[1]) if value_head else None
        self.padding = padding or Padding(causal, 1)
        self.has_linear_head = False
        self._documents_begin_with = documents_begin_with
        self.router = RouterLoss(causal)
        self._body: Callable[..., tuple[Tensor, Tensor | None]] = self._run_body
        self._hidden: Tensor | None = None
        if value_head:
            # What the output embedding sees, for every architecture: after the final norm, before any logit scaling.
            causal.get_output_embeddings().register_forward_pre_hook(self._keep_hidden)

    def compile_body(self) -> None:
        """Let torch.compile fuse what lies between the tokens and the loss of an architecture with a linear head.

        Only for training: what samples from the model calls it with ever other shapes.

        Raises:
            UserError: the head is not linear.
        """
        if not self.has_linear_head:
            raise UserError(
                f"training.compile: the logits of {type(self.causal).__name__} are more than a product with its output "
                "embedding. Set it to false."
            )
        _keep_compiled_code_private()
        self._body = torch.compile(self._run_body)

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """The block computes without torch.compile, as shapes that come seldom are not worth it."""
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
        """Logits [B, T, V], where `logits[:, t]` predicts token t+1, and values float32 [B, T] or None.

        With an objective, its loss and metrics instead, as a pair: `training.objectives.Loss`.

        Args:
            input_ids: int64 [B, T], without padding.
            objective: what the loss is of.
            scores: [B, T], of the tokens; for the loss.
            count: predicted tokens to divide by; for the loss, see `Objective.loss`.
        """
        if objective is None:
            return self._logits(input_ids)[:2]
        if scores is None:
            raise ValueError("a loss needs scores")
        if self.has_linear_head:
            hidden, routed = self._body(*self._laid_out(input_ids))
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
        # Of a part of the global batch its share, so that the parts add up to their mean.
        predicted = input_ids[:, 1:].numel()
        routed = routed * (predicted / (count or predicted))
        return result.loss + self.router.weight * routed, {**result.metrics, METRIC: routed.detach()}

    def _logits(self, input_ids: Tensor, *, routed: bool = False) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Logits and values as of `forward`, and the router's loss where it is asked for."""
        ids, positions = self._laid_out(input_ids)
        asked = {"output_router_logits": True} if routed else {}
        output = self.causal(input_ids=ids, use_cache=False, **asked, **_at(positions))
        logits = output.logits.reshape(*input_ids.shape, -1)
        loss = self.router.of(output) if routed else None
        if self.value_head is None:
            return logits, None, loss
        hidden, self._hidden = self._hidden, None
        return logits, self.value_head(hidden).reshape(input_ids.shape), loss

    def _run_body(self, input_ids: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The last hidden states [B, T, D], and the router's loss where the config asks for it."""
        if self.router.weight is not None:
            return self.router.run(input_ids=input_ids, **_at(positions))
        output = self.causal.base_model(input_ids=input_ids, use_cache=False, **_at(positions))
        return output.last_hidden_state, None

    def _laid_out(self, input_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        # Tokens and positions as the network gets them, with documents apart where they are to be.
        if self._documents_begin_with is None:
            return input_ids, None
        positions = document_positions(input_ids, self._documents_begin_with)
        # Flash Attention takes documents of different lengths only end to end, in one row; in more it lets them see
        # each other. Asked now, because the model gets its attention after it was built (`use_attention`).
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
    documents_apart: bool = False,
    skeleton: bool = False,
) -> LanguageModel:
    """Build the model in float32 on the CPU; the result depends on the state of torch's generator.

    The embedding has a row for every token of the vocabulary, and rows of control tokens that are new start at the mean
    of the others plus small noise, so that a tag is at first nearly neutral. Padding comes after all else, so that it
    changes none of the numbers.

    Args:
        config: which model.
        vocabulary: of the tokenizer.
        value_head: whether the objective needs values.
        context_length: refused when the model has fewer positions.
        rows_multiple: the embeddings are padded to a multiple of so many rows; None is 128 where the architecture lets
            it (`training.model.vocabulary.Padding`).
        documents_apart: tokens see only their own document (`training.model.masking`).
        skeleton: the same modules without numbers, on torch's meta device; whether the head is linear is not tried.

    Raises:
        UserError: unknown name, a config that cannot be built, a context that is too long, or an architecture that
            cannot do what is asked for.
    """
    if context_length is not None:
        check_context(config, context_length)
    with torch.device("meta") if skeleton else nullcontext():
        causal = _causal(config, vocabulary, skeleton=skeleton)
        with possible(causal, "be told apart into embeddings and layers"):
            model = LanguageModel(
                causal,
                value_head=value_head,
                padding=Padding(causal, rows_multiple),
                documents_begin_with=vocabulary.begins_with if documents_apart else None,
            )
    if not skeleton:
        with possible(causal, "compute two tokens"):
            model.padding.check(causal)
        model.has_linear_head = has_linear_head(causal)
        if documents_apart:
            check_documents_apart(causal)
    return model


def _causal(config: ModelConfig, vocabulary: Vocabulary, *, skeleton: bool) -> Any:
    new = vocabulary.control_ids
    if config.pretrained:
        causal = pretrained(config, skeleton=skeleton)
        if not skeleton:
            new = _untrained(config, vocabulary, causal.get_input_embeddings().num_embeddings)
        if causal.get_input_embeddings().num_embeddings < vocabulary.size:
            causal.resize_token_embeddings(vocabulary.size, mean_resizing=False)
        vocabulary.name_ends(causal.config)
    else:
        causal = initialised(config, vocabulary)
    if not skeleton:
        initialise_control_rows(causal, new)
    return causal


def _untrained(config: ModelConfig, vocabulary: Vocabulary, rows: int) -> tuple[int, ...]:
    """The control tokens that a checkpoint with so many rows has not learnt: a conditional model's own are trained."""
    base = rows if vocabulary.base_size is None else vocabulary.base_size
    new = tuple(each for each in vocabulary.control_ids if each >= min(base, rows))
    if any(each < rows for each in new):
        # Spare rows, as of Pythia and Qwen, or a conditional model that is trained on with the tokenizer it began with.
        named = known_ids(config)
        new = tuple(each for each in new if each >= rows or each not in named)
    return new


def _at(positions: Tensor | None) -> dict[str, Tensor]:
    # Not every architecture takes positions.
    return {} if positions is None else {"position_ids": positions}


def checkpoint_activations(model: LanguageModel) -> None:
    """Keep of each layer only its input, and compute the layer again on the way back: less memory, a third more time.

    Raises:
        UserError: the architecture cannot.
    """
    try:
        model.causal.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError:
        raise UserError(
            f"training.activation_checkpointing: {type(model.causal).__name__} cannot compute its layers again. "
            "Set it to false."
        ) from None


def load_model(folder: Path, *, value_head: bool | None = None) -> LanguageModel:
    """Load an exported model folder (`training.export.model`) in float32.

    Args:
        folder: a Hugging Face folder.
        value_head: whether to load the value head; None where there is one.

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
        # Sizes that do not go together, such as heads of less than nothing, show only now.
        with torch.no_grad():
            causal(input_ids=torch.zeros((1, 2), dtype=torch.long), use_cache=False)
    except SafetensorError as error:
        raise UserError(
            f"The weights in {folder} are damaged or cut off ({first_line(error).rstrip('.')}). Restore them, or have "
            "the model of a checkpoint written by `phf export-model`."
        ) from None
    except (
        *(ImportError, OSError, ValueError, TypeError, AttributeError),
        *(RuntimeError, LookupError, ArithmeticError, AssertionError),
    ) as error:
        raise UserError(f"Cannot load a model from {folder}: {first_line(error)}") from None
    return model


def _keep_compiled_code_private() -> None:
    """Have torch take compiled code from no folder that another user of the machine may write into.

    It keeps code and pickles in the shared temporary folder, under a name that anybody can make first.
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
