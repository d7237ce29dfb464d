"""Sample continuations by a server of the run's exported model, such as vLLM, instead of in this process."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from scorers.errors import UserError
from training.endpoint import Completion, Endpoint
from training.evaluation.prepare import EvaluationSetup
from training.model.sampling import Row, evaluation_mode

_AT_ONCE = 64  # samples of a prompt that are requested together
_COMPARED, _COMPARED_TOKENS = 4, 32  # samples, and tokens of each, that show whether the models agree
_MOST_DIFFERENCE = 0.05  # nats a token: half precision differs by less
_BAN = -100  # the least bias that the API allows
_TOKEN_IDS = {"return_token_ids": True}


class EndpointSampler:
    """Draws continuations of token ids at an endpoint that serves the model of a run.

    Args:
        endpoint: the server.
        setup: of the run's evaluation.

    Raises:
        UserError: the server cannot be used as a sampler.
    """

    def __init__(self, endpoint: Endpoint, setup: EvaluationSetup) -> None:
        self._endpoint, self._setup = endpoint, setup
        self._bias: dict[str, int] = {}
        self._prompt = [setup.bos_id, *setup.control_ids[:1]]
        endpoint.probe(
            self._prompt,
            logprobs=True,
            extra=_TOKEN_IDS,
            hint="A sampler needs settings of vLLM (return_token_ids, min_tokens), and to serve this run's export.",
        )

    @property
    def name(self) -> str:
        """For readers."""
        return f"{self._endpoint.model} at {self._endpoint.address}"

    def check(self, model: Any) -> None:
        """Check that the server has this model, by the log-probabilities of a few samples.

        Args:
            model: the run's Hugging Face causal language model.

        Raises:
            UserError: they differ, or its samples are all the same.
        """
        setup, prompt = self._setup, self._prompt
        room = min(_COMPARED_TOKENS, setup.context_length - len(prompt))
        drawn = self._endpoint.complete(
            [prompt],
            max_tokens=max(1, room),
            temperature=1.0,
            top_p=1.0,
            seed=0,
            n=_COMPARED,
            logprobs=True,
            extra=_TOKEN_IDS,
        )
        rows = model.get_input_embeddings().num_embeddings
        device = next(model.parameters()).device
        differences = []
        with evaluation_mode(model):
            for each in drawn:
                ids, log_p = self._ids(each), each.logprobs.token_logprobs if each.logprobs is not None else []
                if not 0 < len(ids) == len(log_p) or max(ids) >= rows:
                    raise self._refusal("sent other tokens than this model has")
                logits = model(input_ids=torch.tensor([[*prompt, *ids]], device=device)).logits[0, len(prompt) - 1 : -1]
                own = torch.log_softmax(logits.double(), dim=-1).gather(-1, torch.tensor(ids, device=device)[:, None])
                differences += (own[:, 0].cpu() - torch.tensor(log_p, dtype=torch.float64)).abs().tolist()
        difference = sum(differences) / max(1, len(differences))
        if not difference <= _MOST_DIFFERENCE:
            raise self._refusal(
                f"has another model: its log-probabilities differ by {difference:.3g} nats a token. Serve the export "
                "of this run (phf export-model)"
            )
        copies = len(drawn) > 1 and len({tuple(self._ids(each)) for each in drawn}) == 1
        if copies and len(differences) > 2 * _COMPARED_TOKENS:
            raise self._refusal("draws the same sample again and again")
        # The padding of the vocabulary is never drawn, as in this process.
        banned = [*setup.banned_ids, *range(setup.vocab_size, rows)]
        self._bias = {str(each): _BAN for each in banned}

    def sample(
        self,
        rows: Sequence[Row],
        *,
        temperature: float,
        top_p: float,
        min_new_tokens: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[list[list[int]], list[bool]]:
        """Sample one continuation of each row's prompt, as `sample_rows` does, but with the server's random numbers.

        Rows with the same prompt and limit are requested together, with a seed from the first one's random numbers.

        Args:
            rows: the prompts and random numbers, without guidance.
            temperature: of sampling.
            top_p: likewise.
            min_new_tokens: EOS is not sampled before.
            progress: called after each request with the rows and the tokens drawn so far.

        Returns:
            For each row its ids without EOS, and whether EOS ended it.

        Raises:
            UserError: the server fails, or ignores a setting.
        """
        groups: dict[tuple[tuple[int, ...], int], list[int]] = {}
        for index, row in enumerate(rows):
            groups.setdefault((tuple(row.prompt_ids), len(row.uniform)), []).append(index)
        ids: list[list[int]] = [[] for _ in rows]
        ended = [False] * len(rows)
        done = tokens = 0
        for (prompt, limit), members in groups.items():
            place = 0
            while place < len(members):
                chosen = members[place : place + _AT_ONCE]
                drawn = self._endpoint.complete(
                    [list(prompt)],
                    max_tokens=limit,
                    temperature=temperature,
                    top_p=top_p,
                    seed=int(float(rows[chosen[0]].uniform[0]) * 2**31),
                    n=len(chosen),
                    extra={**_TOKEN_IDS, "min_tokens": min(min_new_tokens, limit), "logit_bias": self._bias},
                )
                for index, each in zip(chosen, drawn, strict=False):
                    ids[index], ended[index] = self._continuation(each, limit, min_new_tokens)
                    tokens += len(ids[index])
                place += len(drawn)
                done += len(drawn)
                if progress is not None:
                    progress(done, tokens)
        return ids, ended

    def _continuation(self, found: Completion, limit: int, least: int) -> tuple[list[int], bool]:
        ids, setup = self._ids(found), self._setup
        ended = found.finish_reason == "stop"
        if ended and (not ids or ids.pop() != setup.eos_id):
            raise self._refusal("ended a sample without the token that ends a text")
        if setup.eos_id in ids or any(str(each) in self._bias or each >= setup.vocab_size for each in ids):
            raise self._refusal("drew tokens that were banned (logit_bias)")
        if len(ids) < min(least, limit) or (not ended and len(ids) != limit):
            raise self._refusal(
                f"cut a sample at {len(ids)} tokens; it should have {min(least, limit)} (min_tokens) to {limit} "
                "(max_tokens). Does it serve the whole context?"
            )
        return ids, ended

    def _ids(self, found: Completion) -> list[int]:
        if found.token_ids is None:
            raise self._refusal("sends no token ids (return_token_ids). vLLM does")
        return list(found.token_ids)

    def _refusal(self, what: str) -> UserError:
        return UserError(f"--sampler {self._endpoint.address} {what}.")
