"""Run a sentence classifier on its device, without waiting for the device between batches."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from logging import getLogger
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorers.classifiers.batches import Batch, Shapes, plan
from scorers.classifiers.encoding import Ids
from scorers.classifiers.first_token import is_plain_encoder, keep_first_token_only
from scorers.contract import Execution
from scorers.errors import UserError

_log = getLogger(__name__)


class Network:
    """A `*ForSequenceClassification` of transformers that scores sequences of token ids.

    On a CPU it computes in float32: scores agree to 1e-6 in any batch and order (1.0e-6 measured at RoBERTa's base
    size; more for a model that amplifies the last bits of its products, such as one with very large weights).

    On a GPU it computes in bfloat16 (float16 if the GPU lacks bfloat16), its last linear layer in float32, in batches
    of few shapes; it is compiled, and each shape is a CUDA graph. Scores should be within 5e-3 of those in float32.

    Args:
        model: the classifier, in float32. It is changed in place: moved to the device, with its last layer reduced to
            the first token.
        score: from logits [rows, labels] in float32 to scores [rows].
        execution: device, precision, threads and batch size.
        shapes: allowed shapes of batches; by default those that suit the device.

    Raises:
        UserError: the device is missing, or the model has no padding token.
    """

    _reads_first_token = True

    def __init__(
        self, model: Any, score: Callable[[Any], Any], execution: Execution, shapes: Shapes | None = None
    ) -> None:
        import torch

        if model.config.pad_token_id is None:
            raise UserError("The model has no padding token (pad_token_id in its config.json); batches need one.")
        self._torch: Any = torch  # partly untyped
        self._device = _device(torch, execution.device)
        self._threads = execution.threads
        self._score = score
        self._shapes = shapes or Shapes.of(self._device.type, execution.batch_tokens)
        self._padding = model.config.pad_token_id
        self._encoder = is_plain_encoder(model)
        if self._encoder and self._reads_first_token:
            keep_first_token_only(model)
        self._model = model.to(self._device).eval()
        self.precision = _lower(torch, model, precision(torch, self._device, execution.precision))
        self._forward = self._model
        if self._device.type == "cuda" and execution.compile:
            # One compilation for all shapes, and a CUDA graph for each of them.
            self._forward = torch.compile(self._model, mode="reduce-overhead", dynamic=True)

    def scores(self, sequences: Sequence[Ids], check: Callable[[], None] = lambda: None) -> NDArray[np.float32]:
        """Return the score of each sequence, float32 [n_sequences].

        Args:
            sequences: token ids, special ones included, none longer than the model takes.
            check: called before each batch; an exception from it ends the work.
        """
        found = np.zeros(len(sequences), dtype=np.float32)
        with self._torch.inference_mode(), self._own_threads():
            batches, outputs = self._outputs(sequences, check)
            if batches:
                # The only point that waits for the device.
                found[np.concatenate([batch.indices for batch in batches])] = self._torch.cat(outputs).cpu().numpy()
        return found

    def _outputs(self, sequences: Sequence[Ids], check: Callable[[], None]) -> tuple[list[Batch], list[Any]]:
        """Run the sequences in batches; return the batches and the scores of their rows, on the device."""
        batches = list(plan([len(each) for each in sequences], self._shapes))
        outputs = []
        for batch in batches:
            check()
            outputs.append(self._one(batch, [sequences[index] for index in batch.indices]))
        return batches, outputs

    def _one(self, batch: Batch, sequences: Sequence[Ids]) -> Any:
        ids = np.full((batch.rows, batch.length), self._padding, dtype=np.int64)
        mask = np.zeros((batch.rows, batch.length), dtype=np.bool_)
        # A row whose mask is all False would come out as NaN.
        mask[:, 0] = True
        for row, each in enumerate(sequences):
            ids[row, : len(each)] = each
            mask[row, : len(each)] = True
        inputs = {"input_ids": self._move(ids)}
        if self._device.type != "cpu" or not mask.all():
            inputs["attention_mask"] = self._mask(self._move(mask))
        if self._forward is not self._model:
            self._torch.compiler.cudagraph_mark_step_begin()
        logits = self._run(inputs)[: len(sequences)]
        # Clone: a CUDA graph overwrites its outputs at the next replay, and the score may be a view of them.
        return self._score(logits.float()).clone()

    def _run(self, inputs: dict[str, Any]) -> Any:
        if self._forward is self._model:
            return self._model(**inputs).logits
        try:
            return self._forward(**inputs).logits
        except Exception as error:  # noqa: BLE001 - compilers fail in many ways, and the model runs without
            _log.warning("The network could not be compiled (%s); it runs uncompiled, slower.", type(error).__name__)
            self._forward = self._model
            return self._model(**inputs).logits

    def _mask(self, mask: Any) -> Any:
        # transformers uses a mask of four dimensions as it is; of a two-dimensional one it would test on the host
        # whether all of it is true, which waits for the device. Other models build their own mask.
        return mask[:, None, None, :] if self._encoder else mask.long()

    def _move(self, array: NDArray[Any]) -> Any:
        tensor = self._torch.from_numpy(array)
        if self._device.type != "cuda":
            return tensor.to(self._device)
        return tensor.pin_memory().to(self._device, non_blocking=True)

    @contextlib.contextmanager
    def _own_threads(self) -> Iterator[None]:
        before = self._torch.get_num_threads()
        self._torch.set_num_threads(self._threads)
        try:
            yield
        finally:
            self._torch.set_num_threads(before)


class TokenNetwork(Network):
    """A `*ForTokenClassification` of transformers; see `Network`."""

    _reads_first_token = False

    def __init__(self, model: Any, execution: Execution, shapes: Shapes | None = None) -> None:
        super().__init__(model, _most_probable, execution, shapes)

    def best(self, sequences: Sequence[Ids], check: Callable[[], None] = lambda: None) -> list[NDArray[np.float32]]:
        """Return for each sequence, float32 [positions, 2], the probability and the number of the best label.

        The arguments are those of `scores`.
        """
        found: dict[int, NDArray[np.float32]] = {}
        with self._torch.inference_mode(), self._own_threads():
            for batch, output in zip(*self._outputs(sequences, check), strict=True):
                for index, row in zip(batch.indices, output.cpu().numpy(), strict=True):
                    found[index] = row[: len(sequences[index])]
        return [found[index] for index in range(len(sequences))]


def _most_probable(logits: Any) -> Any:
    """From logits [rows, positions, labels] to [rows, positions, 2]: probability and number of the best label."""
    probabilities, labels = logits.softmax(-1).max(-1)
    both = probabilities.new_zeros((*labels.shape, 2))
    both[..., 0], both[..., 1] = probabilities, labels
    return both


def precision(torch: Any, device: Any, wanted: str) -> Any:
    """Return the torch dtype for `Execution.precision` on a device.

    `auto` is float32 everywhere but on CUDA: some CPUs emulate bfloat16 at a hundredth of float32's speed.
    """
    if wanted != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _lower(torch: Any, model: Any, dtype: Any) -> Any:
    """Convert the model to `dtype`, except its last linear layer: a logit of -7 in bfloat16 is off by 0.03."""
    if dtype is torch.float32:
        return dtype
    model.to(dtype)
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    if last.out_features == model.config.num_labels:
        last.float()
        last.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(),))
    return dtype


def _device(torch: Any, name: str) -> Any:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"There is no device {name!r}: {str(error).splitlines()[0]}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"The device {name!r} is not there: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs."
        )
    return device
