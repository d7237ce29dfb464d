"""An OpenAI-compatible server of a small model, as strict as vLLM's, with ways to misbehave."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from training.evaluation.generating import Writer
from training.model.sampling import Row, sample_rows

END = "<|endoftext|>"
NOT_OPENAI = {"top_k", "min_p", "repetition_penalty", "min_tokens", "return_token_ids"}


class CompletionsServer:
    """Serves `/v1/models` and `/v1/completions`; a context manager.

    Attributes:
        address: to give to phf.
        requests: bodies of the requests for completions, in order.
        keys: their Authorization headers.
        change: changes an answer before it is sent; returns bytes to send those.
        status: function that returns a status, headers and a body to send instead of an answer, or None.
        adds_first_token: whether the tokenizer puts a first token before a prompt, so that it may be empty.
        only_openai: whether settings that OpenAI's API does not have are refused.
        sends_end: whether the token that ends a text is among the tokens.
    """

    def __init__(self, writer: Writer, name: str = "tiny") -> None:
        self.writer, self._name = writer, name
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget the requests, and behave well."""
        self.names = [self._name]
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.change: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.status: Callable[[], tuple[int, dict[str, str], bytes] | None] = lambda: None
        self.adds_first_token = self.sends_end = True
        self.only_openai = False

    def __enter__(self) -> "CompletionsServer":
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._send(200, {}, {"object": "list", "data": [{"id": each} for each in outer.names]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.requests.append(body)
                    outer.keys.append(self.headers["Authorization"])
                    other = outer.status()
                    if other is not None:
                        self._send(*other)
                    elif self.path != "/v1/completions" or body["model"] not in outer.names:
                        self._send(404, {}, {"error": {"message": "no such model"}})
                    elif outer.only_openai and set(body) & NOT_OPENAI:
                        self._send(400, {}, {"error": {"message": "unrecognized argument"}})
                    elif "" in body["prompt"] and not outer.adds_first_token:
                        self._send(400, {}, {"error": {"message": "prompt cannot be empty"}})
                    elif not outer.knows(body["prompt"]):
                        self._send(400, {}, {"error": {"message": "token ids are out of vocabulary"}})
                    else:
                        self._send(200, {}, outer.change(outer.answer(body)))

            def _send(self, status: int, headers: dict[str, str], content: Any) -> None:
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def knows(self, prompts: list[Any]) -> bool:
        """Whether all token ids are in the vocabulary."""
        rows = self.writer.model.get_input_embeddings().num_embeddings
        return all(isinstance(each, str) or max(each) < rows for each in prompts)

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """The completions of a request."""
        choices = []
        for place, prompt in enumerate(body["prompt"]):
            ids = self._ids(prompt) if isinstance(prompt, str) else prompt
            limit = min(body["max_tokens"], (self.writer.context_length or 1 << 30) - len(ids))
            seeds = [body["seed"] + place + index for index in range(body["n"])]  # as vLLM does
            drawn, ended = sample_rows(
                self.writer.model,
                [
                    Row(ids, torch.rand(limit, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
                    for seed in seeds
                ],
                eos_id=self.writer.eos_id,
                banned_ids=[int(token) for token, bias in body.get("logit_bias", {}).items() if bias == -100],
                temperature=body["temperature"],
                top_p=body["top_p"],
                batch_size=64,
                min_new_tokens=body.get("min_tokens", 0),
            )
            for found, end in zip(drawn, ended, strict=True):
                choice = self._choice(len(choices), ids, found, end, logprobs="logprobs" in body)
                if body.get("return_token_ids"):
                    choice["token_ids"] = [*found, *[self.writer.eos_id] * end]
                choices.append(choice)
        return {"object": "text_completion", "model": body["model"], "choices": choices}

    def _ids(self, prompt: str) -> list[int]:
        begins = prompt.startswith(END)
        text, _ = self.writer.tokenizer.encode([prompt.removeprefix(END)])
        return [self.writer.first_id] * (begins or self.adds_first_token) + [int(each) for each in text]

    def _choice(self, index: int, prompt: list[int], ids: list[int], ended: bool, *, logprobs: bool) -> dict[str, Any]:
        tokenizer = self.writer.tokenizer
        every = [*ids, *[self.writer.eos_id] * (ended and self.sends_end)]
        found: dict[str, Any] | None = None
        if logprobs:
            with torch.no_grad():
                logits = self.writer.model(input_ids=torch.tensor([[*prompt, *every]])).logits[0].double()
            log_p = torch.log_softmax(logits, dim=-1)
            found = {
                "tokens": [tokenizer.decode([each]) for each in ids] + [END] * (len(every) - len(ids)),
                "token_logprobs": [float(log_p[len(prompt) - 1 + place, each]) for place, each in enumerate(every)],
            }
        return {
            "index": index,
            "text": tokenizer.decode(ids).rstrip("\ufffd"),  # as vLLM, which waits for the rest of a character
            "finish_reason": "stop" if ended else "length",
            "logprobs": found,
        }
