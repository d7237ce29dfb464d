"""A client of OpenAI-compatible endpoints (extra `endpoint`): completions and their log-probabilities.

What an endpoint sends is hostile until it is checked: answers are bounded in size and time, are not decompressed, and
have the shape that the API documents. Redirects are not followed, so that prompts and key reach the named server alone.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from scorers.deadline import DeadlineExceededError, deadline
from scorers.errors import IncompleteError, UserError
from scorers.printing import printable
from scorers.stored import Count, parse_json

KEY_VARIABLE = "OPENAI_API_KEY"
_RETRIES = 3  # the client's own, for refused connections, timeouts, 408, 409, 429 and 5xx, with growing pauses
_CONNECT_S, _ANSWER_S = 10.0, 300.0
_LARGEST = 1 << 20
_LARGEST_TOKEN = 4096  # bytes of an answer that a token may take: its text as JSON, and log-probabilities
_LONGEST_NAME = 256
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may hold lone ones, which are no text
# Not part of OpenAI's API. Without them vLLM and llama.cpp may narrow the distribution by defaults of their own, such
# as those of a model's generation_config.json.
_WHOLE_DISTRIBUTION = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class LogProbabilities(_Answer):
    """The tokens of a completion as text, and their natural log-probabilities."""

    tokens: list[str]
    token_logprobs: list[Annotated[float, Field(le=1e-3)]]


class Completion(_Answer):
    """A choice of an answer.

    Attributes:
        index: of the choice: `n` for each prompt, prompt by prompt.
        text: the text; may hold anything that is valid UTF-8.
        finish_reason: `stop` where the model ended the text, `length` where it was cut.
        logprobs: None if they were not requested.
        token_ids: None if they were not requested, or the server does not know how to send them.
    """

    index: Count
    text: Annotated[str, AfterValidator(lambda text: _SURROGATE.sub("\ufffd", text))]
    finish_reason: str | None = None
    logprobs: LogProbabilities | None = None
    token_ids: list[Count] | None = None


class _Choices(_Answer):
    choices: list[Completion]


class _Model(_Answer):
    id: str


class _Models(_Answer):
    data: list[_Model]


_CHOICES, _MODELS = TypeAdapter(_Choices), TypeAdapter(_Models)


Prompt = str | list[int]
"""Text, or token ids."""


def is_address(place: str) -> bool:
    """Whether a place is the address of an endpoint instead of a path."""
    return re.match(r"https?://", place, re.IGNORECASE) is not None


class Endpoint:
    """A model behind an address.

    Args:
        address: such as `http://localhost:8000/v1`; without a path, `/v1` is added.
        model: its name there; None for the only one.
        option: of the command, for messages, such as `--reference`.

    Attributes:
        address: without credentials.
        model: name.

    Raises:
        UserError: the client is not installed, the address holds credentials, or the endpoint cannot be reached or has
            not one model.
    """

    def __init__(self, address: str, model: str | None, option: str) -> None:
        if find_spec("openai") is None:
            raise UserError(f"{option} needs the openai client, which is not installed: pip install 'phf[endpoint]'.")
        self.address = checked_address(address, option)
        self._option, self._limit, self._works = option, _LARGEST, False
        self._extras: dict[str, Any] = dict(_WHOLE_DISTRIBUTION)
        self._client = self._open()
        self.model = self._only_model() if model is None else model
        if not 0 < len(self.model) <= _LONGEST_NAME or printable(self.model) != self.model:
            raise UserError(f"{option}: a model's name has 1 to {_LONGEST_NAME} printable characters.")

    def probe(
        self, prompt: Prompt, *, logprobs: bool = False, extra: Mapping[str, Any] | None = None, hint: str = ""
    ) -> None:
        """Have one token drawn, to see that the endpoint accepts such requests, and with which settings.

        Args:
            prompt: like the later ones.
            logprobs: whether its log-probability is needed.
            extra: settings that OpenAI's API does not have, and that are needed.
            hint: what to do where it refuses the prompt.

        Raises:
            UserError: it does not.
        """
        import openai

        for extras in (_WHOLE_DISTRIBUTION, {}):
            self._extras = dict(extras)
            try:
                self.complete(
                    [prompt], max_tokens=1, temperature=1.0, top_p=1.0, seed=0, logprobs=logprobs, extra=extra
                )
            except UserError as error:
                refused = isinstance(error.__cause__, openai.APIStatusError) and error.__cause__.status_code in _REFUSED
                if not refused:
                    raise
                if not extras:
                    raise UserError(f"{error} {hint}".strip()) from None
            else:
                break
        self._works = True

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
        n: int = 1,
        logprobs: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        """Continue prompts.

        Args:
            prompts: several with one completion each, or one with several.
            max_tokens: of a completion.
            temperature: of sampling.
            top_p: likewise.
            seed: which the server may use.
            n: completions of a prompt; a server may return fewer of them, at least one.
            logprobs: whether to return log-probabilities.
            extra: settings that OpenAI's API does not have.

        Raises:
            UserError: the endpoint fails; `IncompleteError` after a successful `probe`.
        """
        most = len(prompts) * n
        self._limit = _LARGEST + most * max_tokens * _LARGEST_TOKEN
        settings = {"logprobs": 1} if logprobs else {}
        content = self._request(
            lambda: self._client.completions.with_raw_response.create(
                model=self.model,
                prompt=list(prompts),
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                n=n,
                extra_body={**self._extras, **(extra or {})},
                **settings,
            )
        )
        found = sorted(self._parsed(_CHOICES, content).choices, key=lambda each: each.index)
        wanted = range(most, most + 1) if n == 1 else range(1, most + 1)
        if len(found) not in wanted or [each.index for each in found] != list(range(len(found))):
            raise self._failure(f"sent {len(found):,} completions of other numbers than the {most:,} requested")
        for each in found:
            self._check(each, max_tokens, logprobs=logprobs)
        return found

    def _check(self, found: Completion, max_tokens: int, *, logprobs: bool) -> None:
        if found.token_ids is not None and len(found.token_ids) > max_tokens + 1:
            raise self._failure("sent more tokens than were requested")
        if found.logprobs is None:
            if logprobs:
                raise self._failure("sends no log-probabilities of tokens (`logprobs`). Another server or model may")
            return
        tokens = len(found.logprobs.tokens)
        if tokens != len(found.logprobs.token_logprobs) or tokens > max_tokens + 1:
            raise self._failure("sent other numbers of tokens, or of log-probabilities, than were requested")

    def _only_model(self) -> str:
        self._limit = _LARGEST
        names = [
            each.id for each in self._parsed(_MODELS, self._request(self._client.models.with_raw_response.list)).data
        ]
        if len(names) != 1:
            shown = ", ".join(printable(name)[:_LONGEST_NAME] for name in names[:5])
            raise UserError(
                f"{self._option} {self.address} serves {len(names):,} models{f' ({shown})' * bool(names)}: name one "
                f"with {self._option}-model."
            )
        return str(names[0])

    def _open(self) -> Any:
        import httpx2
        import openai

        key = os.environ.get(KEY_VARIABLE) or "none"
        if re.fullmatch(r"[!-~]+", key) is None:
            raise UserError(f"{KEY_VARIABLE} holds white space or characters that no key has. Set it again.")
        http = openai.DefaultHttpxClient(
            follow_redirects=False,
            event_hooks={"response": [self._bound]},
            limits=httpx2.Limits(max_keepalive_connections=0),  # nothing to close at the end
        )
        return openai.OpenAI(
            api_key=key,
            base_url=self.address,
            http_client=http,
            timeout=openai.Timeout(_ANSWER_S, connect=_CONNECT_S),
            max_retries=_RETRIES,
            default_headers={"Accept-Encoding": "identity"},
        )

    def _bound(self, response: Any) -> None:
        """Bound the answer's size and time; the client calls this before it reads the body, also that of an error."""
        import httpx2

        if response.headers.get("content-encoding", "identity") != "identity":
            raise self._failure("sent a compressed answer, which was not requested")
        inner, limit, failure = response.stream, self._limit, self._failure

        class Bounded(httpx2.SyncByteStream):
            def __iter__(self) -> Iterator[bytes]:
                size, until = 0, time.monotonic() + _ANSWER_S
                for chunk in inner:
                    size += len(chunk)
                    if size > limit:
                        raise failure(f"sent an answer of more than {limit:,} bytes")
                    if time.monotonic() > until:
                        raise failure(f"took more than {_ANSWER_S:.0f} seconds for an answer")
                    yield chunk

            def close(self) -> None:
                inner.close()

        response.stream = Bounded()

    def _request(self, send: Any) -> bytes:
        import httpx2
        import openai

        # The client's own limits are for single reads: a server that sends a header now and then never meets them.
        seconds = (_RETRIES + 1) * (_CONNECT_S + _ANSWER_S)
        try:
            with deadline(seconds):
                content: bytes = send().http_response.content
        except DeadlineExceededError:
            raise self._failure(f"did not answer a request within {seconds:,.0f} seconds") from None
        except UserError:
            raise
        except openai.APIStatusError as error:
            raise self._failure(_why(error.status_code)) from error
        except openai.APITimeoutError:
            raise self._failure(f"did not answer within {_ANSWER_S:.0f} seconds, {_RETRIES + 1} times") from None
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, httpx2.ReadError | httpx2.RemoteProtocolError):
                raise self._failure("closed the connection before its answer was complete. Its log says why") from None
            raise self._failure("cannot be reached. Check the address, and that the server runs") from None
        except Exception as error:  # noqa: BLE001 - whatever a broken answer makes the client raise
            raise self._failure(f"failed ({type(error).__name__})") from None
        return content

    def _parsed(self, adapter: TypeAdapter[Any], content: bytes) -> Any:
        try:
            return adapter.validate_python(parse_json(content.decode("utf-8")))
        except ValidationError as error:
            where = ".".join(str(each) for each in error.errors(include_input=False)[0]["loc"])
            raise self._failure(
                f"sent an answer whose field {printable(where)[:100]} is missing or not valid"
            ) from None
        except ValueError:
            raise self._failure(
                "sent an answer that is not JSON, or holds NaN. Check that the address is that of an API"
            ) from None

    def _failure(self, what: str) -> UserError:
        """An error; the server's own message is left out, as it may quote prompts or the key."""
        kind = IncompleteError if self._works else UserError
        kept = " What is finished is kept: run the same command again." if self._works else ""
        return kind(f"{self._option} {self.address} {what}.{kept}")


_REFUSED = (400, 422)


def _why(status: int) -> str:
    if 300 <= status < 400:
        return f"redirects to another address (status {status}), which phf does not follow. Give the final address"
    if status in (401, 403):
        return f"refuses access (status {status}). Set {KEY_VARIABLE} to a key for it"
    if status == 404:
        return "has no such model, or no completions there (status 404). The address usually ends in /v1"
    if status in _REFUSED:
        return f"refuses the request (status {status}). Its log says why"
    if status == 429:
        return f"refuses further requests for now (status 429, {_RETRIES + 1} times)"
    return f"answers with status {status}"


def checked_address(address: str, option: str) -> str:
    """The address of an API, complete.

    Raises:
        UserError: it is not valid, or holds credentials, which the message does not repeat.
    """
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None or printable(address) != address or " " in address:
        raise UserError(f"{option}: not a valid address. Give one such as http://localhost:8000/v1.")
    if parts.username is not None or parts.query or parts.fragment:
        raise UserError(
            f"{option} {parts.scheme}://...: give the address without user, password and options, which would end up "
            f"in files. A key is read from the environment variable {KEY_VARIABLE}."
        )
    path = parts.path.rstrip("/").removesuffix("/completions") or "/v1"
    return f"{parts.scheme.lower()}://{parts.netloc}{path}"
