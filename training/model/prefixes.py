"""Compute next-token logits for growing rows of tokens, with the model's own cache if it has a usable one."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scorers.stopping import is_stop


class Prefixes:
    """Rows of tokens that a causal language model continues step by step, and that end at different steps.

    The strategy depends on what the model can do, not on its architecture's name. If it returns a cache, a step reads
    only the newest tokens; finished rows are removed from the cache, or stay in it unused if it cannot drop rows.
    Otherwise each step reads the rows from their beginning. The logits differ only in the last bits.

    Args:
        model: a Hugging Face causal language model, in evaluation mode and without gradients.
        ids: int64 [rows, tokens], at least one token per row.
    """

    def __init__(self, model: Any, ids: Tensor) -> None:
        self._model = model
        self._ids = ids
        parameters = inspect.signature(model.forward).parameters
        self._only_last = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self._can_cache = "past_key_values" in parameters
        self._can_drop = True
        self._cache: Any = None
        self._read = 0  # tokens of each row in the cache
        self._rows = len(ids)  # in the cache
        self._places = torch.arange(len(ids), device=ids.device)  # positions in the cache of unfinished rows

    def __len__(self) -> int:
        return len(self._ids)

    def logits(self) -> Tensor:
        """Return the logits [rows, vocabulary] of the token after each row."""
        if self._can_cache:
            try:
                return self._cached_logits()
            except Exception as error:
                if is_stop(error):
                    raise
                # Assume that the model does not support a cache. Any other error occurs again below.
                self._can_cache = False
                self._forget()
        return self._last(self._model(input_ids=self._ids, use_cache=False, **self._only_last))

    def _cached_logits(self) -> Tensor:
        fresh = self._ids[:, self._read :]
        past = {} if self._cache is None else {"past_key_values": self._cache}
        if len(fresh) < self._rows:
            # Finished rows read any token, such as 0.
            fresh = fresh.new_zeros((self._rows, fresh.shape[1])).index_copy(0, self._places, fresh)
        output = self._model(input_ids=fresh, use_cache=True, **past, **self._only_last)
        self._cache, self._read = getattr(output, "past_key_values", None), self._ids.shape[1]
        # Without a cache, this pass has read each row whole.
        self._can_cache = self._cache is not None
        return self._last(output)[self._places] if len(self) < self._rows else self._last(output)

    def append(self, tokens: Tensor) -> None:
        """Append a token to each row: int64 [rows]."""
        self._ids = torch.cat([self._ids, tokens[:, None]], dim=1)

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows: int64, in ascending order."""
        self._ids = self._ids[rows]
        if self._cache is None:
            self._forget()
        elif not self._can_drop:
            self._places = self._places[rows]
        elif _drop(self._cache, self._rows, rows):
            self._all_rows()
        else:
            self._can_drop = False
            self._forget()

    def _forget(self) -> None:
        # The next step reads the rows from their beginning.
        self._cache, self._read = None, 0
        self._all_rows()

    def _all_rows(self) -> None:
        self._rows = len(self._ids)
        self._places = torch.arange(self._rows, device=self._ids.device)

    @staticmethod
    def _last(output: Any) -> Tensor:
        last: Tensor = output.logits[:, -1]
        return last


def _drop(cache: Any, before: int, rows: Tensor) -> bool:
    """Keep only `rows` in a cache of `before` rows; return False on failure, after which the cache is unusable.

    Some caches lack the method in some of their layers, others leave out part of their state: it has worked only if
    every tensor has shrunk.
    """
    sizes = [each.numel() for each in _tensors(cache, set())]
    try:
        cache.batch_select_indices(rows)
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    left = [each.numel() for each in _tensors(cache, set())]
    return [size * len(rows) for size in sizes] == [size * before for size in left]


def _tensors(part: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yield all tensors in a cache, however it holds them, except scalars, which are settings."""
    if isinstance(part, Tensor):
        if part.ndim:
            yield part
        return
    if isinstance(part, nn.Module) or id(part) in seen:
        return
    seen.add(id(part))
    if isinstance(part, Mapping):
        within = list(part.values())
    else:
        within = list(part) if isinstance(part, list | tuple) else list(getattr(part, "__dict__", {}).values())
    for each in within:
        yield from _tensors(each, seen)
