"""An exported model for the lm-evaluation-harness, with the beginning of a document and its control token in front."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from scorers.errors import UserError
from training.evaluation.generating import Writer

_AT_ONCE = 16  # batches between two updates of the progress


class PrefixedModel(HFLM):  # type: ignore[misc]
    """The harness's own Hugging Face model, whose every context begins with the same tokens.

    The harness puts one token (`prefix_token_id`) before a text, and only if it has no context; it drops the beginning
    of a context that is too long, and reads long texts in windows of which only the first has that token. Here each
    context, each window and each shortened context begins with the prefix. Text is encoded as by `phf generate`: names
    of special tokens in it are text.

    Args:
        writer: the exported model.
        condition: name of the control token; None for none.
        batch_size: rows per forward pass.
        progress: called with the requests done and the total.
    """

    def __init__(
        self, writer: Writer, condition: str | None, batch_size: int, progress: Callable[[str, int, int], None]
    ) -> None:
        super().__init__(
            pretrained=writer.model,
            backend="causal",
            tokenizer=writer.tokenizer.fast,
            batch_size=batch_size,
            max_length=writer.context_length,
        )
        self.prefix = writer.prompt_ids("", condition)
        self._writer = writer
        self._progress = progress

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Token ids of a text, after the prefix unless `add_special_tokens` is false."""
        ids, _ = self._writer.tokenizer.encode([string])
        return [*([] if add_special_tokens is False else self.prefix), *map(int, ids)]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is the greedy one."""
        encoded = []
        for context, continuation in (request.args for request in requests):
            if context:
                pair = self._encode_pair(context, continuation)
            else:
                pair = (list(self.prefix), self.tok_encode(continuation, add_special_tokens=False))
            if not pair[1]:
                raise UserError("A task asks for the probability of an empty text. Correct its answers.")
            encoded.append(((context, continuation), *pair))
        return self._score(encoded)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each text, in windows that each begin with the prefix and predict what fits."""
        rows, owners = [], []
        size = self.max_length - len(self.prefix)
        for index, (text,) in enumerate(request.args for request in requests):
            ids = self.tok_encode(text, add_special_tokens=False)
            for start in range(0, len(ids), size):
                # The last token of the window before is context too.
                before = ids[start - 1 : start] if start else []
                rows.append((None, [*self.prefix, *before], ids[start : start + size]))
                owners.append(index)
        totals = [0.0] * len(requests)
        for index, (nats, _) in zip(owners, self._score(rows), strict=True):
            totals[index] += nats
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context up to a stop sequence."""
        written: list[str] = []
        for start in range(0, len(requests), max(1, self.batch_size)):
            batch = requests[start : start + max(1, self.batch_size)]
            written += super().generate_until(list(batch), disable_tqdm=True)
            self._progress("generated", len(written), len(requests))
        return written

    def tok_batch_encode(
        self, strings: Sequence[str], padding_side: str = "left", left_truncate_len: int | None = None, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Padded ids and attention mask; a context that is too long loses its beginning, but not the prefix."""
        rows = [self._shortened(self.tok_encode(each), left_truncate_len) for each in strings]
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self._writer.eos_id)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, length - len(row) :] = torch.tensor(row)
            mask[index, length - len(row) :] = 1
        return ids, mask

    @property
    def max_gen_toks(self) -> int:
        """Tokens to generate if a task does not say."""
        return max(1, min(256, int(self.max_length) // 2))

    def get_model_info(self) -> dict[str, Any]:
        """Nothing: the harness would ask the hub."""
        return {}

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **options: Any) -> torch.Tensor:
        options["suppress_tokens"] = self._writer.banned_ids or None
        written: torch.Tensor = super()._model_generate(context, max_length, stop, **options)
        return written

    def _score(self, rows: list[tuple[Any, list[int], list[int]]]) -> list[tuple[float, bool]]:
        room = self.max_length - len(self.prefix)
        for _, _, continuation in rows:
            if len(continuation) > room:
                raise UserError(
                    f"A task has an answer of {len(continuation):,} tokens, and the model's context has room for "
                    f"{room:,}. Leave this task out."
                )
        # The last token of a row is predicted, not read.
        fitting = [
            (name, self._shortened(context, self.max_length + 1 - len(continuation)), continuation)
            for name, context, continuation in rows
        ]
        found: list[tuple[float, bool]] = []
        step = _AT_ONCE * max(1, self.batch_size)
        for start in range(0, len(fitting), step):
            found += self._loglikelihood_tokens(fitting[start : start + step], disable_tqdm=True)
            self._progress("scored", len(found), len(fitting))
        return found

    def _shortened(self, ids: list[int], length: int | None) -> list[int]:
        if length is None or len(ids) <= length:
            return ids
        rest = length - len(self.prefix)
        return [*self.prefix, *(ids[-rest:] if rest > 0 else [])]
